package docs_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/outboxtest"
)

// docs:begin run
func forward(ctx context.Context, store outbox.Store, publisher message.Publisher) error {
	forwarder, err := outbox.NewForwarder(store, publisher)
	if err != nil {
		return err
	}
	return forwarder.Run(ctx) // until ctx ends, whatever happens to broker and database
}

// docs:end run

// docs:begin plugin
func addForwarder(router *message.Router, store outbox.Store, publisher message.Publisher) error {
	forwarder, err := outbox.NewForwarder(store, publisher)
	if err != nil {
		return err
	}
	router.AddPlugin(forwarder.RouterPlugin)
	return nil
}

// docs:end plugin

// docs:begin drain
func forwardAll(ctx context.Context, store outbox.Store, publisher message.Publisher) error {
	forwarder, err := outbox.NewForwarder(store, publisher)
	if err != nil {
		return err
	}
	n, err := forwarder.Drain(ctx)
	slog.Info("Forwarded", "messages", n)
	return err
}

// docs:end drain

// Each of the three ways publishes what was committed.
func TestForwarding_EachWayPublishesWhatIsPending(t *testing.T) {
	for name, start := range map[string]func(ctx context.Context, store outbox.Store, broker message.Publisher) error{
		"Run":   forward,
		"Drain": forwardAll,
		"plugin": func(ctx context.Context, store outbox.Store, broker message.Publisher) error {
			router := message.NewDefaultRouter(watermill.NopLogger{})
			if err := addForwarder(router, store, broker); err != nil {
				return err
			}
			return router.Run(ctx)
		},
	} {
		t.Run(name, func(t *testing.T) {
			store, _ := newStore(t)
			publisher, err := outbox.NewPublisher(store, outbox.WithOwnTx())
			require.NoError(t, err)
			require.NoError(t, publisher.Publish("orders.placed", orderPlaced("42")))
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			published := make(chan string, 1)
			var running sync.WaitGroup
			running.Go(func() { // ends with ctx
				err := start(ctx, store, brokerFunc(func(_ string, msg *message.Message) error {
					published <- string(msg.Payload)
					return nil
				}))
				if err != nil {
					t.Error(err)
				}
			})
			select {
			case payload := <-published:
				require.Equal(t, "42", payload)
			case <-time.After(patience):
				require.Fail(t, "the message does not come")
			}
			if name != "Drain" {
				cancel()
			}
			running.Wait()
		})
	}
}

// docs:begin options
func newForwarder(store outbox.Store, publisher message.Publisher, metrics outbox.Observer) (*outbox.Forwarder, error) {
	return outbox.NewForwarder(
		store, publisher,
		outbox.WithMaxRetries(20),
		outbox.WithRetryBackoff(500*time.Millisecond, 5*time.Minute),
		outbox.WithPermanentError(func(err error) bool {
			var refused sarama.ConfigurationError // by the client: too large
			return errors.As(err, &refused)
		}),
		outbox.WithObserver(metrics),
	)
}

// docs:end options

// docs:begin observer
func observe(_ context.Context, event outbox.Event) {
	switch e := event.(type) {
	case outbox.PublishedEvent:
		slog.Debug("Published", "topic", e.Message.Topic, "took", e.Duration)
	case outbox.SetAsideEvent:
		slog.Error("Somebody has to look at a message", "uuid", e.Message.UUID, "err", e.Err)
	case outbox.OutageBegunEvent:
		slog.Error("A topic is down", "topic", e.Topic, "err", e.Err)
	case outbox.OutageEndedEvent:
		slog.Info("A topic is back", "topic", e.Topic, "after", e.Duration)
	}
}

// docs:end observer

// docs:begin inspector
func mend(ctx context.Context, store outbox.Inspector) error {
	failed, err := store.ListFailed(ctx, "", 100) // for the next page, pass the ID of the last message
	if err != nil {
		return err
	}
	for _, m := range failed {
		if strings.Contains(m.LastError, "too large") {
			_, err = store.Discard(ctx, m.ID)
		} else {
			_, err = store.Requeue(ctx, m.ID)
		}
		if err != nil {
			return fmt.Errorf("message %s to %s: %w", m.UUID, m.Topic, err)
		}
	}
	return nil
}

// docs:end inspector

// What the broker refuses for good is set aside, and the Observer hears of it. Then it is published after all, or not.
func TestForwarding_WhatIsSetAsideIsMended(t *testing.T) {
	store, _ := newStore(t)
	publisher, err := outbox.NewPublisher(store, outbox.WithOwnTx())
	require.NoError(t, err)
	require.NoError(t, publisher.Publish("orders.placed", orderPlaced("42")))
	require.NoError(t, publisher.Publish("orders.placed", orderPlaced("43")))

	var mu sync.Mutex
	var heard []string
	refusing := brokerFunc(func(_ string, msg *message.Message) error {
		if string(msg.Payload) == "42" {
			return sarama.ConfigurationError("the message is too large")
		}
		return sarama.ConfigurationError("no such topic")
	})
	forwarder, err := newForwarder(store, refusing, outbox.ObserverFunc(func(ctx context.Context, event outbox.Event) {
		observe(ctx, event)
		if e, ok := event.(outbox.SetAsideEvent); ok {
			mu.Lock()
			defer mu.Unlock()
			heard = append(heard, string(e.Message.Payload))
		}
	}))
	require.NoError(t, err)
	_, err = forwarder.Drain(t.Context())
	require.Error(t, err)
	require.ElementsMatch(t, []string{"42", "43"}, heard)

	require.NoError(t, mend(t.Context(), store))
	pending := outboxtest.Messages(t, store, nil, "orders.placed")
	require.Len(t, pending, 1)
	require.Equal(t, "43", string(pending[0].Payload))
	failed, err := store.CountFailed(t.Context())
	require.NoError(t, err)
	require.Zero(t, failed)
}
