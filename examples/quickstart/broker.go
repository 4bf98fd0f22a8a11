package main

import (
	"errors"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"
)

// redeliverEvery is which messages the broker delivers twice: the 10th, the 20th and so on.
const redeliverEvery = 10

// broker is Watermill's Go channels with the faults of a real broker: it is down for a while, and delivers some
// messages more than once.
type broker struct {
	*gochannel.GoChannel
	outage      time.Duration
	outageAfter int

	mu        sync.Mutex
	accepted  int
	downUntil time.Time
}

func newBroker(settings serviceSettings, logger watermill.LoggerAdapter) *broker {
	// The Forwarder takes the return of Publish for the broker's word that the message is safe. Go channels can say so
	// only when it was handled.
	config := gochannel.Config{BlockPublishUntilSubscriberAck: true}
	return &broker{
		GoChannel: gochannel.NewGoChannel(config, logger), outage: settings.Outage, outageAfter: settings.OutageAfter,
	}
}

var errDown = errors.New("the broker is down")

// Publish delivers msgs once, twice, or not at all.
func (b *broker) Publish(topic string, msgs ...*message.Message) error {
	deliveries, err := b.accept(time.Now())
	if err != nil {
		return err
	}
	for range deliveries {
		if err := b.GoChannel.Publish(topic, msgs...); err != nil {
			return err
		}
	}
	return nil
}

func (b *broker) accept(now time.Time) (deliveries int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.outage > 0 && b.downUntil.IsZero() && b.accepted >= b.outageAfter {
		b.downUntil = now.Add(b.outage)
	}
	if now.Before(b.downUntil) {
		return 0, errDown
	}
	b.accepted++
	if b.accepted%redeliverEvery == 0 {
		return 2, nil
	}
	return 1, nil
}
