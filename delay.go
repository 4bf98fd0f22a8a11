package outbox

import (
	"fmt"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/components/delay"
	"github.com/ThreeDotsLabs/watermill/message"
)

// availableAt returns when msg is due, by the delay that Watermill's components/delay put in its metadata or, failing
// that, in its context; the zero time if there is none.
//
// The metadata hold the moment, cut to whole seconds, and the duration it was made from. The duration counted from now
// is exact, if the message is published right after the delay was set; the moment tells if it was not. So the result
// is now plus the duration, within the second that the moment names.
func availableAt(topic string, msg *message.Message) (time.Time, error) {
	metadata := msg.Metadata
	if metadata.Get(delay.DelayedForKey) == "" && metadata.Get(delay.DelayedUntilKey) == "" {
		var err error
		if metadata, err = delayFromContext(topic, msg); err != nil {
			return time.Time{}, err
		}
	}
	if len(metadata) == 0 {
		return time.Time{}, nil
	}
	now := time.Now()
	var byDuration, byMoment time.Time
	if value := metadata.Get(delay.DelayedForKey); value != "" {
		d, err := time.ParseDuration(value)
		if err != nil {
			return time.Time{}, fmt.Errorf("metadata %s is not a duration, such as 1m30s", delay.DelayedForKey)
		}
		byDuration = now.Add(d)
	}
	if value := metadata.Get(delay.DelayedUntilKey); value != "" {
		var err error
		if byMoment, err = time.Parse(time.RFC3339, value); err != nil {
			return time.Time{}, fmt.Errorf("metadata %s is not a time as in RFC 3339", delay.DelayedUntilKey)
		}
	}
	due := byDuration
	switch {
	case byMoment.IsZero():
	case byDuration.IsZero() || byDuration.Before(byMoment):
		due = byMoment
	case byDuration.After(byMoment.Add(time.Second)):
		due = byMoment.Add(time.Second)
	}
	if !due.After(now) {
		return time.Time{}, nil
	}
	return due, nil
}

// delayFromContext returns the metadata that delay.WithContext asks for. Only Watermill's own delaying publisher can
// read its context key, so one is run over an empty message with the same context.
func delayFromContext(topic string, msg *message.Message) (message.Metadata, error) {
	probe := probes.Get().(*message.Message) //nolint:forcetypeassert // the pool holds nothing else
	probe.SetContext(msg.Context())
	if err := delayProbe.Publish(topic, probe); err != nil {
		return nil, fmt.Errorf("delay in the context: %w", err)
	}
	metadata := probe.Metadata
	if len(metadata) == 0 { // nearly always: the probe is as it was
		probe.SetContext(nil) //nolint:staticcheck // so that the pool does not keep the context
		probes.Put(probe)
	}
	return metadata, nil
}

var probes = sync.Pool{New: func() any { return &message.Message{Metadata: message.Metadata{}} }}

var delayProbe = func() message.Publisher {
	p, err := delay.NewPublisher(discard{}, delay.PublisherConfig{AllowNoDelay: true})
	if err != nil {
		panic(err) // cannot happen: the constructor has no failing path, and a test would show one
	}
	return p
}()

type discard struct{}

func (discard) Publish(string, ...*message.Message) error { return nil }
func (discard) Close() error                              { return nil }
