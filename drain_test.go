package outbox_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/components/delay"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
)

func drain(t *testing.T, store outbox.Store, pub message.Publisher) (int, error) {
	t.Helper()
	f, err := outbox.NewForwarder(store, pub, outbox.WithLogger(watermill.NopLogger{}))
	require.NoError(t, err)
	return f.Drain(t.Context())
}

func TestDrain_TellsOfWhatItCouldNotPublish(t *testing.T) {
	store, b := newMemory(t), newBroker()
	b.answer = func(_ string, msg *message.Message) error {
		if string(msg.Payload) == "bad" {
			return errDown
		}
		return nil
	}
	publish(t, store, "topic", newMessage("bad", "a"), newMessage("good", "b"))
	n, err := drain(t, store, b)
	require.Equal(t, 1, n)
	require.ErrorIs(t, err, errDown)
	b.answer = nil
	n, err = drain(t, store, b)
	require.NoError(t, err)
	require.Equal(t, 1, n, "an attempt that did not count leaves no wait behind")
}

func TestDrain_LeavesDelayedMessagesUntilTheyAreDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, b := newMemory(t), newBroker()
		delayed := newMessage("later", "a")
		delay.Message(delayed, delay.For(time.Minute))
		publish(t, store, "topic", delayed, newMessage("now", "a"))
		n, err := drain(t, store, b)
		require.NoError(t, err)
		require.Equal(t, 1, n, "a delayed message blocks nothing before it is due")
		time.Sleep(time.Minute + time.Second)
		n, err = drain(t, store, b)
		require.NoError(t, err)
		require.Equal(t, 1, n)
		require.Equal(t, []string{"now", "later"}, b.payloads())
	})
}

func TestDrain_SaysSoWhileAnotherInstanceRelays(t *testing.T) {
	store := newMemory(t)
	run(t, store.NewInstance(), newBroker())
	_, err := drain(t, store, newBroker())
	require.ErrorIs(t, err, outbox.ErrNoLease)
}

func TestDrain_StopsWithItsContext(t *testing.T) {
	store, b := newMemory(t), newBroker()
	ctx, cancel := context.WithCancel(t.Context())
	b.answer = func(string, *message.Message) error { cancel(); return nil }
	for range 1000 {
		publish(t, store, "topic", newMessage("x", "key"))
	}
	f, err := outbox.NewForwarder(store, b, outbox.WithLogger(watermill.NopLogger{}))
	require.NoError(t, err)
	n, err := f.Drain(ctx)
	require.ErrorIs(t, err, context.Canceled)
	require.Less(t, n, 1000)
}

var errLocked = errors.New("database is locked")

// failsAt has the claims from the first-th to the last-th fail.
func failsAt(first, last int, err error) func(context.Context, func() ([]outbox.Message, error)) ([]outbox.Message, error) {
	claims := 0 // there is one at a time
	return func(_ context.Context, claim func() ([]outbox.Message, error)) ([]outbox.Message, error) {
		if claims++; claims >= first && claims <= last {
			return nil, err
		}
		return claim()
	}
}

func TestDrain_RidesOutAClaimThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, b := &heldStore{Store: newMemory(t), claim: failsAt(1, 4, errLocked)}, newBroker()
		publish(t, store, "topic", newMessage("x", ""))
		n, err := drain(t, store, b)
		require.NoError(t, err)
		require.Equal(t, 1, n)
	})
}

func TestDrain_GivesUpOnADatabaseThatStaysAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &heldStore{Store: newMemory(t), claim: failsAt(1, 1<<30, errLocked)}
		f, err := outbox.NewForwarder(store, newBroker(), outbox.WithLogger(watermill.NopLogger{}))
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err = f.Drain(ctx)
		require.ErrorIs(t, err, errLocked)
	})
}

func TestForwarder_Close_DoesNotRepeatTheErrorOfAnEarlierRun(t *testing.T) {
	store := newMemory(t)
	other := store.NewInstance()
	_, err := other.Claim(t.Context(), 1, 1<<20) // it has the lease
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, other.Close()) })
	f, err := outbox.NewForwarder(store, newBroker(), outbox.WithLogger(watermill.NopLogger{}))
	require.NoError(t, err)
	_, err = f.Drain(t.Context())
	require.ErrorIs(t, err, outbox.ErrNoLease)
	require.NoError(t, f.Close())
}

// Invariant: whatever ends a run, it waits for the Publish calls in flight and marks them.
func TestForwarder_MarksWhatIsInFlight_WhenAClaimEndsTheRun(t *testing.T) {
	for name, test := range map[string]struct {
		err error
		run func(f *outbox.Forwarder) error
	}{
		"Drain and an error that stays": {errLocked, func(f *outbox.Forwarder) error {
			n, err := f.Drain(context.Background())
			if n != 1 {
				err = errors.New("what it has published is not counted")
			}
			return err
		}},
		"Run and a schema that has gone": {outbox.ErrNotMigrated, func(f *outbox.Forwarder) error { return f.Run(context.Background()) }},
		"Run and a store that is closed": {outbox.ErrClosed, func(f *outbox.Forwarder) error { return f.Run(context.Background()) }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store, b := &heldStore{Store: newMemory(t), claim: failsAt(2, 1<<30, test.err)}, newBroker()
				hold := make(chan struct{})
				b.answer = func(string, *message.Message) error { <-hold; return nil }
				publish(t, store, "topic", newMessage("x", ""))
				f, err := outbox.NewForwarder(store, b, outbox.WithLogger(watermill.NopLogger{}))
				require.NoError(t, err)
				ended := make(chan error, 1)
				go func() { ended <- test.run(f) }()
				time.Sleep(10 * time.Second)
				require.Empty(t, ended, "the caller closes the broker next")
				close(hold)
				require.ErrorIs(t, <-ended, test.err)
				require.Empty(t, pendingOf(t, store.Store), "it is not published again")
			})
		})
	}
}
