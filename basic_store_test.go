package outbox_test

import (
	"context"
	"errors"
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/store/memory"
)

// fiveMethods hides everything of a store but the methods of outbox.Store.
type fiveMethods struct{ outbox.Store }

func TestForwarder_OverAStoreOfFiveMethods_PublishesEverything_ThroughFailuresAndOutages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, b := newMemory(t), newBroker()
		var down atomic.Bool
		attempts := atomic.Int64{}
		b.answer = func(topic string, msg *message.Message) error {
			attempts.Add(1)
			switch {
			case topic == "gone", down.Load():
				return errDown
			case string(msg.Payload) == "poison":
				return errors.New("cannot be encoded")
			}
			return nil
		}
		down.Store(true)
		for i := range 100 {
			publish(t, store, "gone", newMessage("gone", ""))
			publish(t, store, "topic", newMessage(strconv.Itoa(i), strconv.Itoa(i%10)))
		}
		publish(t, store, "topic", newMessage("poison", ""))
		run(t, &fiveMethods{store}, b)
		time.Sleep(5 * time.Minute)
		require.Less(t, attempts.Load(), int64(2000), "an outage is probed, not stormed")
		require.Empty(t, failed(t, store))
		down.Store(false)
		b.await(t, 100)
		require.NotContains(t, b.payloads(), "gone")
		for len(failed(t, store)) == 0 { // by the store's own policy, while others show that the topic works
			publish(t, store, "topic", newMessage("other", ""))
			time.Sleep(20 * time.Second)
		}
		require.Equal(t, "poison", string(failed(t, store)[0].Payload))
	})
}

func TestForwarder_OverAStoreOfFiveMethods_PublishesInItsNextRun_WhatTheLastOneGaveUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, b := newMemory(t), newBroker()
		hang := make(chan struct{})
		b.answer = func(string, *message.Message) error {
			<-hang
			return errDown
		}
		publish(t, store, "topic", newMessage("x", ""))
		f, err := outbox.NewForwarder(&fiveMethods{store}, b, outbox.WithLogger(watermill.NopLogger{}),
			outbox.WithCloseTimeout(time.Second))
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.ErrorIs(t, f.Run(ctx), outbox.ErrCloseTimeout)
		close(hang)
		synctest.Wait()
		b.answer = nil
		n, err := f.Drain(t.Context())
		require.NoError(t, err)
		require.Equal(t, 1, n)
	})
}

func TestForwarder_OverAStoreOfFiveMethods_TriesATopicAgainInItsNextRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, b := newMemory(t), newBroker()
		b.answer = func(string, *message.Message) error { return errDown }
		for range 6 { // more than make an outage
			publish(t, store, "topic", newMessage("x", ""))
		}
		f, err := outbox.NewForwarder(&fiveMethods{store}, b, outbox.WithLogger(watermill.NopLogger{}))
		require.NoError(t, err)
		_, err = f.Drain(t.Context())
		require.ErrorIs(t, err, errDown)
		b.answer = nil
		time.Sleep(time.Minute)
		n, err := f.Drain(t.Context())
		require.NoError(t, err)
		require.Equal(t, 6, n)
	})
}

func TestForwarder_APublisherThatWritesToAMessageDamagesNoLaterAttempt(t *testing.T) {
	for name, hide := range map[string]func(*memory.Store) outbox.Store{
		"five methods": func(s *memory.Store) outbox.Store { return &fiveMethods{s} },
		"leases":       func(s *memory.Store) outbox.Store { return s },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store, b, attempts := newMemory(t), newBroker(), 0
				b.answer = func(_ string, msg *message.Message) error {
					if attempts++; attempts > 3 {
						return nil
					}
					clear(msg.Payload)
					msg.Metadata.Set("name", "damaged")
					return errDown
				}
				msg := newMessage("payload", "a")
				msg.Metadata.Set("name", "value")
				publish(t, store, "topic", msg)
				run(t, hide(store), b)
				b.await(t, 1)
				require.Equal(t, []string{"payload"}, b.payloads())
				require.Equal(t, "value", b.published[0].Metadata.Get("name"))
			})
		})
	}
}

func TestForwarder_OverAStoreOfFiveMethods_SaysSo(t *testing.T) {
	logger := watermill.NewCaptureLogger()
	_, err := outbox.NewForwarder(&fiveMethods{newMemory(t)}, newBroker(), outbox.WithLogger(logger))
	require.NoError(t, err)
	captured := logger.Captured()[watermill.InfoLogLevel]
	require.Len(t, captured, 1)
	require.Contains(t, captured[0].Msg, "no leases")
}

func TestNewForwarder_SaysWhatIsWrong(t *testing.T) {
	store, b := newMemory(t), newBroker()
	own, err := outbox.NewPublisher(store)
	require.NoError(t, err)
	for want, construct := range map[string]func() (*outbox.Forwarder, error){
		"the store is nil":     func() (*outbox.Forwarder, error) { return outbox.NewForwarder(nil, b) },
		"the publisher is nil": func() (*outbox.Forwarder, error) { return outbox.NewForwarder(store, nil) },
		"pass your broker's publisher": func() (*outbox.Forwarder, error) {
			return outbox.NewForwarder(store, own)
		},
		"BatchSize is 0, must be from 1 to 100000": func() (*outbox.Forwarder, error) {
			return outbox.NewForwarder(store, b, outbox.WithBatchSize(0))
		},
		"MaxRetryBackoff is 1s, must be from 1m0s to 24h0m0s": func() (*outbox.Forwarder, error) {
			return outbox.NewForwarder(store, b, outbox.WithRetryBackoff(time.Minute, time.Second))
		},
		"PermanentError is nil": func() (*outbox.Forwarder, error) {
			return outbox.NewForwarder(store, b, outbox.WithPermanentError(nil))
		},
		"Observer is nil":  func() (*outbox.Forwarder, error) { return outbox.NewForwarder(store, b, outbox.WithObserver(nil)) },
		"an option is nil": func() (*outbox.Forwarder, error) { return outbox.NewForwarder(store, b, nil) },
	} {
		_, err := construct()
		require.ErrorContains(t, err, want)
	}
	for _, option := range []outbox.Option{
		outbox.WithPollInterval(0), outbox.WithConcurrency(-1), outbox.WithMaxInFlight(0), outbox.WithMaxInFlightBytes(1),
		outbox.WithMaxRetries(0), outbox.WithPublishTimeout(0), outbox.WithCloseTimeout(25 * time.Hour),
	} {
		_, err := outbox.NewForwarder(store, b, option)
		require.ErrorContains(t, err, "must be from")
	}
	_, err = outbox.NewForwarder(store, b, outbox.WithRetention(-1), outbox.WithCleanupInterval(-1))
	require.NoError(t, err, "these two mean off, and the default")
}
