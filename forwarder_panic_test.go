package outbox_test

import (
	"context"
	"io/fs"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
)

func TestForwarder_APanicOfThePublisherIsAnErrorOfThatMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, b := newMemory(t), newBroker()
		b.answer = func(_ string, msg *message.Message) error {
			if string(msg.Payload) == "boom" {
				panic("nil map")
			}
			return nil
		}
		publish(t, store, "topic", newMessage("boom", "a"))
		run(t, store, b, outbox.WithMaxRetries(2))
		for range 20 { // others show that the topic works
			publish(t, store, "topic", newMessage("fine", "b"))
			b.await(t, 1)
			time.Sleep(time.Second)
		}
		require.Len(t, failed(t, store), 1)
		require.Contains(t, failed(t, store)[0].LastError, "the publisher panicked: nil map")
	})
}

func TestForwarder_APublisherThatPanicsInAnOutageCostsNoAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const messages = 100
		store, b := newMemory(t), newBroker()
		var down atomic.Bool
		down.Store(true)
		b.answer = func(string, *message.Message) error {
			if down.Load() {
				panic("send on closed channel")
			}
			return nil
		}
		for range messages {
			publish(t, store, "topic", newMessage("x", ""))
		}
		run(t, store, b, outbox.WithMaxRetries(2))
		time.Sleep(30 * time.Minute)
		require.Empty(t, failed(t, store))
		down.Store(false)
		b.await(t, messages)
	})
}

func TestForwarder_APanicOfPermanentErrorHurtsNobody_AndIsLoggedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, b, logger := newMemory(t), newBroker(), watermill.NewCaptureLogger()
		attempts := 0
		b.answer = func(string, *message.Message) error {
			if attempts++; attempts < 3 {
				return errDown
			}
			return nil
		}
		publish(t, store, "topic", newMessage("x", "a"), newMessage("y", "a"))
		run(t, store, b, outbox.WithLogger(logger),
			outbox.WithPermanentError(func(error) bool { panic("nil error code") }))
		b.await(t, 2)
		require.Empty(t, failed(t, store))
		errs := logger.Captured()[watermill.ErrorLogLevel]
		require.Len(t, errs, 1)
		require.EqualError(t, errs[0].Err, "nil error code")
	})
}

var panics = outbox.ObserverFunc(func(context.Context, outbox.Event) { panic("metrics") })

func TestForwarder_APanicOfTheObserverHurtsNobody(t *testing.T) {
	store, b := newMemory(t), newBroker()
	publish(t, store, "topic", newMessage("x", ""), newMessage("y", ""))
	run(t, store, b, outbox.WithObserver(panics))
	b.await(t, 2)
	require.Eventually(t, func() bool { return len(pendingOf(t, store)) == 0 }, 30*time.Second, time.Millisecond)
	require.Empty(t, failed(t, store))
}

func TestPublisher_APanicOfTheObserverHurtsNobody(t *testing.T) {
	store := newMemory(t)
	pub, err := outbox.NewPublisher(store, outbox.WithOwnTx(), outbox.WithObserver(panics))
	require.NoError(t, err)
	require.NoError(t, pub.Publish("topic", newMessage("x", "")))
	require.Len(t, pendingOf(t, store), 1)
}

func TestDeduplicator_APanicOfTheObserverHurtsNobody_AndIsLogged(t *testing.T) {
	logger := watermill.NewCaptureLogger()
	d, err := outbox.NewDeduplicator(newMemory(t).Processed(), "group", outbox.WithObserver(panics), outbox.WithLogger(logger))
	require.NoError(t, err)
	handled := 0
	h := d.Middleware(func(*message.Message) ([]*message.Message, error) { handled++; return nil, nil })
	for range 2 {
		_, err = h(message.NewMessage("id", nil))
		require.NoError(t, err)
	}
	require.Equal(t, 1, handled)
	require.Len(t, logger.Captured()[watermill.ErrorLogLevel], 1)
}

// rude is an error that cannot be asked for anything.
type rude struct{}

func (rude) Error() string { panic("no comment") }
func (rude) Is(error) bool { panic("no comment") }

func TestForwarder_AnErrorThatPanicsIsOneThatSaysSo(t *testing.T) {
	for name, bad := range map[string]error{"a nil pointer": (*fs.PathError)(nil), "panics": rude{}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store, b := newMemory(t), newBroker()
				b.answer = func(_ string, msg *message.Message) error {
					if string(msg.Payload) == "bad" {
						return bad
					}
					return nil
				}
				publish(t, store, "topic", newMessage("bad", "a"))
				run(t, store, b, outbox.WithMaxRetries(2))
				for range 10 { // others show that the topic works
					publish(t, store, "topic", newMessage("fine", "b"))
					b.await(t, 1)
					time.Sleep(time.Second)
				}
				require.Len(t, failed(t, store), 1)
				require.Contains(t, failed(t, store)[0].LastError, "the publisher panicked: its error, a ")
			})
		})
	}
}

func TestForwarder_APublisherThatEndsItsGoroutineFailsThatMessageOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, b := newMemory(t), newBroker()
		b.answer = func(_ string, msg *message.Message) error {
			if string(msg.Payload) == "exit" {
				runtime.Goexit()
			}
			return nil
		}
		publish(t, store, "topic", newMessage("exit", "a"))
		run(t, store, b, outbox.WithMaxRetries(2), outbox.WithConcurrency(1))
		for range 10 { // by the same worker, if it were not replaced
			publish(t, store, "topic", newMessage("fine", "b"))
			b.await(t, 1)
			time.Sleep(time.Second)
		}
		require.Len(t, failed(t, store), 1)
		require.Contains(t, failed(t, store)[0].LastError, "ended its goroutine")
	})
}
