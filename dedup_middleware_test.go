package outbox_test

import (
	"context"
	"database/sql"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/components/delay"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/store/sqlite"
)

// consumer is a SQLite outbox with a table for the effects of handlers.
type consumer struct {
	store *sqlite.Store
	db    *sql.DB
}

func newConsumer(t *testing.T) *consumer {
	t.Helper()
	store, db := newSQLite(t)
	_, err := db.Exec("CREATE TABLE effects (what TEXT NOT NULL)")
	require.NoError(t, err)
	return &consumer{store: store, db: db}
}

func (c *consumer) dedup(t *testing.T, opts ...outbox.DeduplicatorOption) *outbox.Deduplicator {
	t.Helper()
	d, err := outbox.NewDeduplicator(c.store.Processed(), "group",
		append([]outbox.DeduplicatorOption{outbox.WithLogger(watermill.NopLogger{})}, opts...)...)
	require.NoError(t, err)
	return d
}

// write is a handler's business write, in the transaction of the message's context.
func (c *consumer) write(ctx context.Context, what string) error {
	tx, ok := c.store.TxFromContext(ctx)
	if !ok {
		return errors.New("the context carries no transaction")
	}
	_, err := tx.ExecContext(ctx, "INSERT INTO effects (what) VALUES (?)", what)
	return err
}

func (c *consumer) effects(t *testing.T) (n int) {
	t.Helper()
	require.NoError(t, c.db.QueryRow("SELECT count(*) FROM effects").Scan(&n))
	return n
}

func (c *consumer) pending(t *testing.T) []outbox.Message {
	t.Helper()
	msgs, err := c.store.Pending(t.Context(), nil, 1000)
	require.NoError(t, err)
	return msgs
}

func TestDeduplicator_HandlesARedeliveredMessageOnce(t *testing.T) {
	c, seen := newConsumer(t), &events{}
	h := c.dedup(t, outbox.WithObserver(seen)).Middleware(func(msg *message.Message) ([]*message.Message, error) {
		return nil, c.write(msg.Context(), "effect")
	})
	msg := newMessage("x", "")
	for range 3 {
		_, err := h(msg)
		require.NoError(t, err)
	}
	require.Equal(t, 1, c.effects(t))
	require.Equal(t, []outbox.DeduplicatedEvent{{Group: "group", MessageID: msg.UUID}, {Group: "group", MessageID: msg.UUID}},
		collect[outbox.DeduplicatedEvent](seen))
}

func TestDeduplicator_RollsBackTogetherWithTheHandler(t *testing.T) {
	for name, fail := range map[string]func(ctx context.Context) error{
		"error":       func(context.Context) error { return errDown },
		"panic":       func(context.Context) error { panic("boom") },
		"SetRollback": func(ctx context.Context) error { outbox.SetRollback(ctx); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			c := newConsumer(t)
			failing := true
			h := middleware.Recoverer(c.dedup(t).Middleware(func(msg *message.Message) ([]*message.Message, error) {
				if err := c.write(msg.Context(), "effect"); err != nil {
					return nil, err
				}
				if failing {
					return nil, fail(msg.Context())
				}
				return nil, nil
			}))
			msg := newMessage("x", "")
			_, err := h(msg)
			require.Error(t, err)
			require.Zero(t, c.effects(t))
			failing = false
			_, err = h(msg)
			require.NoError(t, err)
			require.Equal(t, 1, c.effects(t))
		})
	}
}

func TestDeduplicator_AConcurrentRedeliveryWaitsAndIsNotHandled(t *testing.T) {
	c := newConsumer(t)
	begun, goOn := make(chan struct{}), make(chan struct{})
	h := c.dedup(t).Middleware(func(msg *message.Message) ([]*message.Message, error) {
		close(begun) // a second call panics
		<-goOn
		return nil, c.write(msg.Context(), "effect")
	})
	msg := newMessage("x", "")
	var wg sync.WaitGroup
	deliver := func() {
		_, err := h(msg.Copy())
		require.NoError(t, err)
	}
	wg.Go(deliver)
	<-begun
	wg.Go(deliver)
	close(goOn)
	wg.Wait()
	require.Equal(t, 1, c.effects(t))
}

type contextKey struct{}

func TestDeduplicator_RestoresTheContextForAnOuterRetry(t *testing.T) {
	c := newConsumer(t)
	original := context.WithValue(t.Context(), contextKey{}, "original")
	msg := newMessage("x", "")
	msg.SetContext(original)
	_, err := c.dedup(t).Middleware(func(*message.Message) ([]*message.Message, error) { return nil, errDown })(msg)
	require.ErrorIs(t, err, errDown)
	require.Equal(t, original, msg.Context())
}

func TestDeduplicator_ACancelledContextDoesNotRollBackWhatTheHandlerFinished(t *testing.T) {
	c := newConsumer(t)
	ctx, cancel := context.WithCancel(t.Context())
	msg := newMessage("x", "")
	msg.SetContext(ctx)
	_, err := c.dedup(t).Middleware(func(msg *message.Message) ([]*message.Message, error) {
		err := c.write(msg.Context(), "effect")
		cancel() // as Router.Close does
		return nil, err
	})(msg)
	require.NoError(t, err)
	require.Equal(t, 1, c.effects(t))
}

func TestDeduplicator_GroupsDoNotSwallowEachOthersMessages(t *testing.T) {
	c := newConsumer(t)
	msg := newMessage("x", "")
	for _, group := range []string{"billing", "shipping"} {
		d, err := outbox.NewDeduplicator(c.store.Processed(), group)
		require.NoError(t, err)
		_, err = d.Middleware(func(msg *message.Message) ([]*message.Message, error) {
			return nil, c.write(msg.Context(), group)
		})(msg)
		require.NoError(t, err)
	}
	require.Equal(t, 2, c.effects(t))
}

func TestDeduplicator_NeedsAnID(t *testing.T) {
	c := newConsumer(t)
	empty := message.NewMessage("", []byte("x"))
	never := func(*message.Message) ([]*message.Message, error) { panic("must not be called") }
	_, err := c.dedup(t).Middleware(never)(empty)
	require.ErrorContains(t, err, "outbox.WithMessageID")

	byPayload := outbox.WithMessageID(func(msg *message.Message) (string, error) { return string(msg.Payload), nil })
	h := c.dedup(t, byPayload).Middleware(func(msg *message.Message) ([]*message.Message, error) {
		return nil, c.write(msg.Context(), "effect")
	})
	for range 2 {
		_, err := h(empty)
		require.NoError(t, err)
	}
	require.Equal(t, 1, c.effects(t))
}

func TestDeduplicator_EffectElsewhere_MarksAfterSuccessOnly(t *testing.T) {
	c := newConsumer(t)
	calls, failing := 0, true
	h := c.dedup(t, outbox.WithEffectElsewhere()).Middleware(func(msg *message.Message) ([]*message.Message, error) {
		_, inTx := c.store.TxFromContext(msg.Context())
		require.False(t, inTx)
		calls++
		if failing {
			return nil, errDown
		}
		return nil, nil
	})
	msg := newMessage("x", "")
	_, err := h(msg)
	require.ErrorIs(t, err, errDown)
	failing = false
	for range 3 {
		_, err := h(msg)
		require.NoError(t, err)
	}
	require.Equal(t, 2, calls)
}

// routed runs one message through a router with a handler that returns a message.
func routed(t *testing.T, publisher message.Publisher, handler message.HandlerFunc, mw ...message.HandlerMiddleware) {
	t.Helper()
	pubSub := gochannel.NewGoChannel(gochannel.Config{BlockPublishUntilSubscriberAck: true}, nil)
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	require.NoError(t, err)
	router.AddMiddleware(mw...)
	handled := make(chan struct{})
	var once sync.Once
	router.AddMiddleware()
	router.AddHandler("handler", "in", pubSub, "out", publisher, handler)
	router.AddMiddleware(func(h message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) {
			defer once.Do(func() { close(handled) })
			return h(msg)
		}
	})
	ended := make(chan error, 1)
	go func() { ended <- router.Run(context.Background()) }()
	<-router.Running()
	published := make(chan error, 1)
	go func() { published <- pubSub.Publish("in", newMessage("x", "")) }()
	<-handled
	select {
	case err := <-published: // the message was acknowledged
		require.NoError(t, err)
	case <-time.After(100 * time.Millisecond): // it is redelivered for ever
	}
	require.NoError(t, router.Close())
	require.NoError(t, <-ended)
	require.NoError(t, pubSub.Close())
}

func TestDeduplicator_SavesWhatTheHandlerReturns_InItsTransaction(t *testing.T) {
	c := newConsumer(t)
	publisher, err := outbox.NewPublisher(c.store, outbox.WithKeyFunc(
		func(string, *message.Message) (string, error) { return "key", nil }))
	require.NoError(t, err)
	routed(t, publisher, func(msg *message.Message) ([]*message.Message, error) {
		produced := newMessage("produced", "")
		produced.SetContext(delay.WithContext(msg.Context(), delay.For(time.Hour)))
		return []*message.Message{produced}, c.write(msg.Context(), "effect")
	}, c.dedup(t).Middleware, middleware.CorrelationID)
	require.Equal(t, 1, c.effects(t))
	require.Len(t, c.pending(t), 1)
	produced := c.pending(t)[0]
	require.Equal(t, "out", produced.Topic)
	require.Equal(t, "key", produced.Key, "by the very publisher of the handler")
	require.Contains(t, produced.Headers, middleware.CorrelationIDMetadataKey)
	require.False(t, produced.AvailableAt.IsZero(), "its own context counts, too")
}

func TestDeduplicator_DoesNotLetReturnedMessagesLeakToAnotherBroker(t *testing.T) {
	c := newConsumer(t)
	var handlerErr error
	watch := func(h message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) {
			msgs, err := h(msg)
			handlerErr = err
			return msgs, nil
		}
	}
	b := newBroker()
	routed(t, b, func(msg *message.Message) ([]*message.Message, error) {
		return []*message.Message{newMessage("produced", "")}, c.write(msg.Context(), "effect")
	}, watch, c.dedup(t).Middleware)
	require.ErrorContains(t, handlerErr, "outbox.WithProducedPublisher")
	require.Empty(t, b.payloads())
	require.Zero(t, c.effects(t))
	require.Empty(t, c.pending(t))
}

func TestDeduplicator_WithProducedPublisher_UsesADecoratedOutbox(t *testing.T) {
	c := newConsumer(t)
	publisher, err := outbox.NewPublisher(c.store)
	require.NoError(t, err)
	decorated, err := message.MessageTransformPublisherDecorator(func(m *message.Message) {
		m.Metadata.Set("decorated", "yes")
	})(publisher)
	require.NoError(t, err)
	routed(t, decorated, func(*message.Message) ([]*message.Message, error) {
		return []*message.Message{newMessage("produced", "")}, nil
	}, c.dedup(t, outbox.WithProducedPublisher(decorated)).Middleware)
	require.Len(t, c.pending(t), 1)
	require.Equal(t, "yes", c.pending(t)[0].Headers["decorated"])
}

func TestDeduplicator_RefusesAnOutboxInAnotherDatabase(t *testing.T) {
	c, other := newConsumer(t), newConsumer(t)
	publisher, err := outbox.NewPublisher(other.store)
	require.NoError(t, err)
	var handlerErr error
	routed(t, publisher, func(*message.Message) ([]*message.Message, error) {
		return []*message.Message{newMessage("produced", "")}, nil
	}, func(h message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) {
			msgs, err := h(msg)
			handlerErr = err
			return msgs, nil
		}
	}, c.dedup(t).Middleware)
	require.ErrorIs(t, handlerErr, outbox.ErrNoTx)
	require.ErrorContains(t, handlerErr, "another outbox")
}

func TestDeduplicator_SavesReturnedMessagesInItsOwnTransaction_WhateverTheirContextsCarry(t *testing.T) {
	c := newConsumer(t)
	publisher, err := outbox.NewPublisher(c.store)
	require.NoError(t, err)
	routed(t, publisher, func(*message.Message) ([]*message.Message, error) {
		produced := newMessage("produced", "")
		produced.SetContext(outbox.ContextWithTx(context.Background(), c.store, &sql.Tx{})) // one that has ended long ago
		return []*message.Message{produced}, nil
	}, c.dedup(t).Middleware)
	require.Len(t, c.pending(t), 1)
}

func TestDeduplicator_ConsumerHandlersMustNotReturnMessages(t *testing.T) {
	c := newConsumer(t)
	_, err := c.dedup(t).Middleware(func(*message.Message) ([]*message.Message, error) {
		return []*message.Message{newMessage("produced", "")}, nil
	})(newMessage("x", ""))
	require.ErrorIs(t, err, message.ErrOutputInNoPublisherHandler)
}

func TestNewDeduplicator_SaysWhatIsWrong(t *testing.T) {
	store, _ := newSQLite(t)
	for want, construct := range map[string]func() (*outbox.Deduplicator, error){
		"the store is nil":   func() (*outbox.Deduplicator, error) { return outbox.NewDeduplicator(nil, "g") },
		"the group is empty": func() (*outbox.Deduplicator, error) { return outbox.NewDeduplicator(store.Processed(), "") },
		"the publisher is nil": func() (*outbox.Deduplicator, error) {
			return outbox.NewDeduplicator(store.Processed(), "g", outbox.WithProducedPublisher(nil))
		},
		"the function is nil": func() (*outbox.Deduplicator, error) {
			return outbox.NewDeduplicator(store.Processed(), "g", outbox.WithMessageID(nil))
		},
		"Logger is nil": func() (*outbox.Deduplicator, error) {
			return outbox.NewDeduplicator(store.Processed(), "g", outbox.WithLogger(nil))
		},
		"WithEffectElsewhere()": func() (*outbox.Deduplicator, error) {
			return outbox.NewDeduplicator(struct{ outbox.ProcessedStore }{store.Processed()}, "g")
		},
	} {
		_, err := construct()
		require.ErrorContains(t, err, want)
	}
}

func TestRunProcessedCleanup_PurgesUntilItsContextEnds(t *testing.T) {
	c := newConsumer(t)
	p := c.store.Processed()
	_, err := p.MarkProcessed(t.Context(), nil, "g", "old", nil)
	require.NoError(t, err)
	_, err = c.db.Exec("UPDATE outbox_processed SET processed_at = processed_at - 3600000")
	require.NoError(t, err)
	_, err = p.MarkProcessed(t.Context(), nil, "g", "new", nil)
	require.NoError(t, err)

	purged := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		outbox.RunProcessedCleanup(ctx, purgeSignal{p, purged}, nil, time.Minute, time.Hour)
	})
	<-purged
	cancel()
	wg.Wait()
	for id, want := range map[string]bool{"old": false, "new": true} {
		seen, err := p.IsProcessed(t.Context(), nil, "g", id)
		require.NoError(t, err)
		require.Equal(t, want, seen, id)
	}
	outbox.RunProcessedCleanup(t.Context(), p, nil, 0, time.Hour, outbox.WithLogger(watermill.NopLogger{}))
	outbox.RunProcessedCleanup(t.Context(), p, nil, time.Hour, -1, outbox.WithLogger(watermill.NopLogger{}))
}

type purgeSignal struct {
	outbox.ProcessedStore
	purged chan struct{}
}

func (p purgeSignal) PurgeProcessedBefore(ctx context.Context, db any, t time.Time) (int64, error) {
	defer close(p.purged)
	return p.ProcessedStore.PurgeProcessedBefore(ctx, db, t)
}
