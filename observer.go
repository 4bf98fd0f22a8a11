package outbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill"
)

// Observer hears of what happens: for metrics, traces and alarms. Observe is called synchronously, by many goroutines
// at once, so it must be quick and safe for concurrent use. It must not keep or change a Message's Payload or Headers,
// nor wait for the Forwarder to close. A panic is logged (that of a [Publisher]'s to slog.Default()). The context of a Forwarder's events is empty.
type Observer interface {
	Observe(ctx context.Context, event Event)
}

// ObserverFunc is a function that is an [Observer].
type ObserverFunc func(ctx context.Context, event Event)

// Observe calls f.
func (f ObserverFunc) Observe(ctx context.Context, event Event) { f(ctx, event) }

// Event is one of the structs of this package whose names end in Event. More may come in later releases: a type
// switch over events needs no default, and should not panic in it.
type Event interface{ isEvent() }

type (
	// SavedEvent is sent by a [Publisher] after it has written messages in the caller's transaction, which may still
	// roll back.
	SavedEvent struct {
		Topic    string
		Messages []Message
		Duration time.Duration // of the write
	}

	// ClaimedEvent is sent when a [Forwarder] has claimed messages to publish.
	ClaimedEvent struct {
		Messages []Message
		Duration time.Duration // of the read
	}

	// PublishedEvent is sent when the broker has acknowledged a message, before that is marked in the outbox.
	PublishedEvent struct {
		Message  Message
		Duration time.Duration // of the Publish call
	}

	// FailedEvent is sent when an attempt to publish has failed and the message is to be tried again.
	FailedEvent struct {
		Message Message
		Err     error
		// Counted is false when the broker or the topic seems to be at fault rather than the message.
		Counted    bool
		RetryAfter time.Duration
	}

	// SetAsideEvent is sent when a message is given up, before that is marked in the outbox: from then on, a moment later,
	// it waits for Requeue or Discard of the store's [Inspector].
	SetAsideEvent struct {
		Message Message
		Err     error
	}

	// StalledEvent is sent when a Publish call has not returned for the publish timeout. The call goes on, its key
	// waits for it, and another worker takes its place. The Message comes without Payload and Headers, which the call may
	// be writing to.
	StalledEvent struct {
		Message  Message
		Duration time.Duration // so far
	}

	// OutageBegunEvent is sent when publishing to a topic has failed several times in a row without a success.
	// Until it ends, no failure counts against a message, and if several of them fail, only probes go out.
	OutageBegunEvent struct {
		Topic string
		Err   error
	}

	// OutageEndedEvent is sent when a topic works again, or when nothing was there to be sent to it for ten minutes.
	OutageEndedEvent struct {
		Topic    string
		Duration time.Duration
	}

	// LeaseGainedEvent is sent when the store has acquired slots: it publishes their messages from now on.
	LeaseGainedEvent struct{ Slots []int }

	// LeaseLostEvent is sent when slots went to another instance or could not be renewed in time. Err is nil when they
	// were given up on purpose.
	LeaseLostEvent struct {
		Slots []int
		Err   error
	}

	// MissedEvent is sent when the store has found a message that its reads had passed by, which it now goes back to. Somebody
	// has inserted it under an old id, or has taken its delay away; if nobody has, it is a defect of the store.
	MissedEvent struct {
		ID string // of the first that was found; there may be more
	}

	// DeduplicatedEvent is sent by a [Deduplicator] for a redelivered message that was handled before.
	DeduplicatedEvent struct {
		Group     string // as recorded: the group of the Deduplicator, a slash, and the handler's name
		MessageID string
		Topic     string
	}
)

func (SavedEvent) isEvent()        {}
func (ClaimedEvent) isEvent()      {}
func (PublishedEvent) isEvent()    {}
func (FailedEvent) isEvent()       {}
func (SetAsideEvent) isEvent()     {}
func (StalledEvent) isEvent()      {}
func (OutageBegunEvent) isEvent()  {}
func (OutageEndedEvent) isEvent()  {}
func (LeaseGainedEvent) isEvent()  {}
func (LeaseLostEvent) isEvent()    {}
func (MissedEvent) isEvent()       {}
func (DeduplicatedEvent) isEvent() {}

// tell tells o of event. Metrics must not stop messages, so a panic is logged.
func tell(ctx context.Context, o Observer, event Event, logger watermill.LoggerAdapter) {
	defer func() {
		if value := recover(); value != nil {
			logger.Error("The Observer panicked", errors.New(panicText(value)), watermill.LogFields{"event": fmt.Sprintf("%T", event)})
		}
	}()
	o.Observe(ctx, event)
}

// panicText is what a recovered value says. One that is neither a text nor an error is told by its type: it may be a message,
// or have one in it, and payloads are nothing for a log. A fmt.Stringer is told so, too: messages of protobuf print all they have.
func panicText(value any) string {
	switch value.(type) {
	case string, error:
		return fmt.Sprint(value)
	}
	return fmt.Sprintf("a %T", value)
}

type observerKey struct{}

// ContextWithObserver returns a context by which a [LeasedStore] finds the [Observer] for its own events (the gain and
// loss of leases), in the manner of net/http/httptrace.
func ContextWithObserver(ctx context.Context, o Observer) context.Context {
	return context.WithValue(ctx, observerKey{}, o)
}

// ObserverFromContext returns the [Observer] that ctx carries, or one that does nothing.
func ObserverFromContext(ctx context.Context) Observer {
	if o, ok := ctx.Value(observerKey{}).(Observer); ok && o != nil {
		return o
	}
	return nopObserver{}
}

type nopObserver struct{}

func (nopObserver) Observe(context.Context, Event) {}
