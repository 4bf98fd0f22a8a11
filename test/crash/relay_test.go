package crash_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"

	"github.com/watermill-outbox/outbox"
)

// maxInFlight is small, so that a few messages are more than one claim and more than one mark.
const maxInFlight = 6

// relay is a relay: it ends in order when the broker has answered all that is due.
func (j job) relay(db *database, t *trap) (err error) {
	broker, err := j.openBroker(t)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, broker.Close()) }()
	forwarder, err := j.newForwarder(j.withPoints(db.store, t), broker, func() { tell(saysLost) })
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- forwarder.Run(context.Background()) }() // ends with Close
	select {
	case err := <-ended:
		return fmt.Errorf("the Forwarder has ended by itself: %w", err)
	case <-broker.all:
		return forwarder.Close()
	}
}

// relayRest relays until nothing is left, and returns how many times a lease was lost.
func (j job) relayRest(ctx context.Context, db *database) (lost int, err error) {
	broker, err := j.openBroker(nil)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, broker.Close()) }()
	losses := make(chan struct{}, 100)
	forwarder, err := j.newForwarder(db.store, broker, func() { losses <- struct{}{} })
	if err != nil {
		return 0, err
	}
	ended := make(chan error, 1)
	go func() { ended <- forwarder.Run(ctx) }() // ends with Close
	select {
	case err := <-ended:
		return 0, err
	case <-forwarder.Running():
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		left, err := db.query(ctx, "SELECT uuid FROM outbox_messages")
		if err == nil && len(left) > 0 && time.Now().After(deadline) {
			err = fmt.Errorf("%v are stuck", left)
		}
		if err != nil || len(left) == 0 {
			return len(losses), errors.Join(err, forwarder.Close(), <-ended)
		}
	}
}

func (j job) newForwarder(store outbox.Store, broker *broker, lost func()) (*outbox.Forwarder, error) {
	observe := func(_ context.Context, event outbox.Event) {
		switch e := event.(type) {
		case outbox.LeaseLostEvent:
			if e.Err != nil {
				lost()
			}
		case outbox.FailedEvent:
			if e.Counted {
				broker.relent()
			}
		}
	}
	opts := []outbox.Option{
		outbox.WithBatchSize(4), outbox.WithMaxInFlight(maxInFlight), outbox.WithConcurrency(2),
		outbox.WithPollInterval(20 * time.Millisecond), outbox.WithRetryBackoff(time.Millisecond, 10*time.Millisecond),
		outbox.WithPermanentError(func(err error) bool { return errors.Is(err, errRefused) }),
		outbox.WithObserver(outbox.ObserverFunc(observe)), outbox.WithLogger(watermill.NopLogger{}),
	}
	if j.Keep {
		opts = append(opts, outbox.WithRetention(time.Hour))
	}
	return outbox.NewForwarder(store, broker, opts...)
}

// withPoints returns the store with points around what a Forwarder calls.
func (j job) withPoints(store outboxStore, t *trap) outbox.Store {
	s := pointedStore{store, t, j.Broken, &sync.Map{}}
	if notifier, ok := store.(outbox.Notifier); ok {
		return struct {
			pointedStore
			outbox.Notifier
		}{s, notifier}
	}
	return s
}

type pointedStore struct {
	outboxStore

	trap    *trap
	broken  string
	claimed *sync.Map // by id, for one that is broken
}

func (s pointedStore) Claim(ctx context.Context, limit, maxBytes int) ([]outbox.Message, error) {
	s.trap.at("before Claim")
	msgs, err := s.outboxStore.Claim(ctx, limit, maxBytes)
	if len(msgs) > 0 {
		s.trap.at("after Claim")
	}
	if s.broken != "" && err == nil {
		err = s.afterClaim(ctx, msgs)
	}
	return msgs, err
}

func (s pointedStore) Settle(ctx context.Context, outcomes ...outbox.Outcome) error {
	s.trap.at("before Settle")
	defer s.trap.at("after Settle")
	if s.broken != "" {
		if err := s.beforeSettle(ctx, outcomes); err != nil {
			return err
		}
	}
	return s.outboxStore.Settle(ctx, outcomes...)
}

func (s pointedStore) Release(ctx context.Context, ids ...string) error {
	if len(ids) > 0 {
		return s.outboxStore.Release(ctx, ids...)
	}
	s.trap.at("before Release")
	defer s.trap.at("after Release")
	return s.outboxStore.Release(ctx)
}
