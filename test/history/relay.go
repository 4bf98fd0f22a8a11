package history

import (
	"context"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/watermill-outbox/outbox"
)

// Observe records which slots a relay gains and loses: it is an outbox.ObserverFunc.
func (r *Recorder) Observe(_ context.Context, event outbox.Event) {
	switch e := event.(type) {
	case outbox.LeaseGainedEvent:
		r.Add(Event{Kind: Gained, Slots: e.Slots})
	case outbox.LeaseLostEvent:
		r.Add(Event{Kind: Dropped, Slots: e.Slots})
	}
}

// Publisher decorates the one that a relay publishes with: it records when a message is handed to it, and when that was
// successful.
func (r *Recorder) Publisher(p message.Publisher) message.Publisher { return recordingPublisher{p, r} }

type recordingPublisher struct {
	message.Publisher

	recorder *Recorder
}

func (p recordingPublisher) Publish(topic string, msgs ...*message.Message) error {
	of := make([]Message, len(msgs))
	for i, msg := range msgs {
		of[i] = Message{ID: msg.UUID, Key: KeyOf(topic, msg)}
	}
	p.recorder.Add(Event{Kind: Attempt, Messages: of})
	err := p.Publisher.Publish(topic, msgs...)
	if err == nil {
		p.recorder.Add(Event{Kind: Acked, Messages: of})
	}
	return err
}

// KeyOf returns a message's key, or nothing.
func KeyOf(topic string, msg *message.Message) string {
	if key, err := outbox.PartitionKey(topic, msg); err == nil && key != msg.UUID {
		return key
	}
	return ""
}
