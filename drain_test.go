package outbox_test

import (
	"context"
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
