package outbox

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
)

// Forwarder relays messages from a store to a broker's publisher: at least once each, those of one key in order. Any
// number of instances, in any number of processes, may run over one database; they share the work by leases.
//
// The publisher must not return before the broker has the message: for watermill-amqp turn publisher confirms on, for
// Go channels BlockPublishUntilSubscriberAck. (Go channels also drop what is published before there is a subscriber, and
// what is not acknowledged when they close: start the Forwarder after the subscribers, and close it before the channel.)
// It is called by many goroutines at once, with one message each.
type Forwarder struct {
	store     LeasedStore
	publisher message.Publisher
	cfg       Config
	observing bool // somebody else than the log hears of events
	wake      chan struct{}
	leading   atomic.Bool // the last claim was not refused for want of a lease

	runningOnce sync.Once
	running     chan struct{}

	mu     sync.Mutex
	closed bool
	stop   context.CancelFunc // of the run under way, nil if there is none
	ended  chan struct{}      // closed at its end
	err    error              // of the run that Close has ended
}

// NewForwarder returns a Forwarder from store to publisher. It starts nothing; call Run, or add RouterPlugin to a
// router.
func NewForwarder(store Store, publisher message.Publisher, opts ...Option) (*Forwarder, error) {
	cfg := DefaultConfig()
	var errs []error
	for _, opt := range opts {
		if isNil(opt) {
			errs = append(errs, errors.New("an option is nil"))
			continue
		}
		opt.Apply(&cfg)
	}
	switch {
	case isNil(store):
		errs = append(errs, errors.New("the store is nil: make one with sqlite.New(db) or another store package"))
	case !isComparable(store):
		errs = append(errs, fmt.Errorf("the store is a %T, which cannot be told from others; pass a pointer", store))
	}
	if isNil(publisher) {
		errs = append(errs, errors.New("the publisher is nil: pass your broker's message.Publisher"))
	}
	if p, ok := publisher.(*Publisher); ok && p != nil && p.store == store {
		errs = append(errs, errors.New("the publisher writes to the same outbox: pass your broker's publisher"))
	}
	if err := errors.Join(append(errs, cfg.validate())...); err != nil {
		return nil, fmt.Errorf("outbox: forwarder: %w", err)
	}
	cfg.PermanentError = guarded(cfg.PermanentError, cfg.Logger)
	_, isNop := cfg.Observer.(nopObserver)
	f := &Forwarder{
		publisher: publisher, cfg: cfg, observing: !isNop,
		wake: make(chan struct{}, 1), running: make(chan struct{}),
	}
	leased, ok := store.(LeasedStore)
	if !ok {
		leased = newBasicStore(store)
		cfg.Logger.Info("The store has no leases (outbox.LeasedStore): messages of a key may change their order, and "+
			"retries follow the store's own policy", watermill.LogFields{"store": fmt.Sprintf("%T", store)})
	}
	f.store = leased
	return f, nil
}

// guarded takes a panic of the user's function for a no, and says so once.
func guarded(isPermanent func(error) bool, logger watermill.LoggerAdapter) func(error) bool {
	var once sync.Once
	return func(err error) (permanent bool) {
		defer func() {
			if value := recover(); value != nil {
				once.Do(func() {
					logger.Error("The function of WithPermanentError panicked; the message is tried again", errors.New(panicText(value)),
						watermill.LogFields{"of": err})
				})
			}
		}()
		return isPermanent(err)
	}
}

// Run relays until ctx ends or Close is called, whatever happens to broker and database in between. Then it stops
// taking messages, waits up to the close timeout for those that are being published, marks them, releases the others,
// gives up its leases and returns nil, or an error that wraps [ErrCloseTimeout].
//
// It returns early only with an error that waiting will not mend: [ErrNotMigrated], [ErrAlreadyRunning], [ErrClosed].
// Then, too, it waits for what is being published, and marks it.
func (f *Forwarder) Run(ctx context.Context) error {
	_, err := f.runOnce(ctx, false)
	return err
}

// Drain publishes what is pending and due, and returns how many messages were published: for tests, cron jobs and
// shutdown scripts. It does not wait for messages that are delayed or failed just now; if any failed, the error tells
// of the last. It returns [ErrNoLease] while another process relays, and stops early when
// ctx ends, with its error, at Close, with [ErrClosed], or when the database has failed several times in a row.
func (f *Forwarder) Drain(ctx context.Context) (int, error) {
	r, err := f.runOnce(ctx, true)
	if r == nil {
		return 0, err
	}
	switch {
	case err != nil || r.drained:
	case ctx.Err() != nil:
		err = fmt.Errorf("outbox: drain: %w", ctx.Err())
	default: // Close has ended it
		err = ErrClosed
	}
	if d := r.dispatcher; err == nil && d.failures > 0 {
		err = fmt.Errorf("outbox: drain: %d attempts to publish failed; their messages are still in the outbox, or were "+
			"set aside; the last one: %w", d.failures, d.lastErr)
	}
	return r.dispatcher.published, err
}

// relaying holds the stores that have a Forwarder running: two would take each other's messages, and one's end the
// other's leases.
var relaying sync.Map

func (f *Forwarder) runOnce(ctx context.Context, drain bool) (*relay, error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan struct{})
	f.mu.Lock()
	switch {
	case f.closed:
		f.mu.Unlock()
		return nil, ErrClosed
	case f.stop != nil:
		f.mu.Unlock()
		return nil, ErrAlreadyRunning
	}
	if _, taken := relaying.LoadOrStore(f.identity(), f); taken {
		f.mu.Unlock()
		return nil, ErrAlreadyRunning
	}
	f.stop, f.ended = stop, ended
	f.mu.Unlock()

	r := newRelay(f, drain)
	err := r.run(ctx)

	f.leading.Store(false)
	relaying.Delete(f.identity())
	f.mu.Lock()
	if f.stop = nil; f.closed {
		f.err = err
	}
	f.mu.Unlock()
	close(ended)
	return r, err
}

// identity is what two Forwarders over the same store have in common.
func (f *Forwarder) identity() any {
	if basic, ok := f.store.(*basicStore); ok {
		return basic.Store
	}
	return f.store
}

// Running returns a channel that is closed when Run, for the first time, has found the database ready to relay from.
func (f *Forwarder) Running() <-chan struct{} { return f.running }

// claimedOnce notes that the store has answered; leading tells whether this instance relays or stands by.
func (f *Forwarder) claimedOnce(leading bool) {
	f.leading.Store(leading)
	f.runningOnce.Do(func() { close(f.running) })
}

// Close ends Run as the end of its context does, waits for it, and returns its error, or nil if nothing was running.
// After that Run returns [ErrClosed]. It may be called any number of times, from any goroutine but the publisher's.
func (f *Forwarder) Close() error {
	f.mu.Lock()
	f.closed = true
	stop, ended := f.stop, f.ended
	f.mu.Unlock()
	if ended == nil {
		return nil
	}
	if stop != nil {
		stop()
	}
	<-ended
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// Wake makes a running Forwarder look for messages now. Call it after a commit in the same process to save the few
// milliseconds until the store notices by itself. It never blocks.
func (f *Forwarder) Wake() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// observe tells the Observer of an event, and the log of those that an operator should see.
func (f *Forwarder) observe(event Event) {
	f.log(event)
	if f.observing {
		tell(context.Background(), f.cfg.Observer, event, f.cfg.Logger)
	}
}

func (f *Forwarder) log(event Event) {
	logger := f.cfg.Logger
	switch e := event.(type) {
	case FailedEvent:
		fields := messageFields(&e.Message).Add(watermill.LogFields{"retry_after": e.RetryAfter, "counted": e.Counted})
		if e.Counted {
			logger.Error("Publishing a message failed, will be tried again", stacklessError{e.Err}, fields)
		} else {
			logger.Info("Publishing failed, will be tried again", fields.Add(watermill.LogFields{"err": stacklessError{e.Err}}))
		}
	case SetAsideEvent:
		logger.Error("A message was set aside and needs somebody to look at it", stacklessError{e.Err}, messageFields(&e.Message))
	case StalledEvent:
		logger.Error("A Publish call does not return; its key waits for it", nil,
			messageFields(&e.Message).Add(watermill.LogFields{"since": e.Duration}))
	case OutageBegunEvent:
		logger.Error("Publishing to a topic fails, will be tried again until it works", stacklessError{e.Err},
			watermill.LogFields{"topic": e.Topic})
	case OutageEndedEvent:
		logger.Info("The outage of a topic is over", watermill.LogFields{"topic": e.Topic, "after": e.Duration})
	case LeaseGainedEvent:
		logger.Info("This instance relays", watermill.LogFields{"slots": len(e.Slots)})
	case LeaseLostEvent:
		fields := watermill.LogFields{"slots": len(e.Slots)}
		if e.Err != nil {
			fields["err"] = e.Err
		}
		logger.Info("This instance no longer relays", fields)
	case MissedEvent:
		logger.Error("A message was missed, and is read now; was it inserted or changed by hand?", nil,
			watermill.LogFields{"outbox_id": e.ID})
	}
}

// stacklessError is a publisher's error for the log. Those of Watermill's publishers are of pkg/errors, and slog's text handler
// would print their stacks, some kilobytes for each attempt.
type stacklessError struct{ error }

func (e stacklessError) Unwrap() error { return e.error }

func messageFields(m *Message) watermill.LogFields {
	return watermill.LogFields{
		"message_uuid": m.UUID, "topic": m.Topic, "outbox_id": m.ID, "key": m.Key, "retries": m.Retries,
	}
}
