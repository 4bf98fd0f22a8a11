package docs_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"entgo.io/ent/dialect"
	entsql "entgo.io/ent/dialect/sql"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"
	"github.com/stretchr/testify/require"
	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect/pgdialect"
	"gorm.io/gorm"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/outboxtest"
	"github.com/watermill-outbox/outbox/store/pgxstore"
	"github.com/watermill-outbox/outbox/store/postgres"
	"github.com/watermill-outbox/outbox/test/docs/ent"
)

// docs:begin middleware
func addMiddleware(router *message.Router, store *pgxstore.Store, poisonQueue message.HandlerMiddleware) error {
	dedup, err := outbox.NewDeduplicator(store.Processed(), "billing")
	if err != nil {
		return err
	}
	retry := middleware.Retry{
		MaxRetries: 4, InitialInterval: 100 * time.Millisecond, Multiplier: 2, MaxInterval: time.Second,
		ResetContextOnRetry: true,
	}
	router.AddMiddleware(
		poisonQueue, // outermost
		retry.Middleware,
		middleware.Recoverer,
		dedup.Middleware,
		middleware.Timeout(time.Minute),
		middleware.CorrelationID,
	)
	return nil
}

// docs:end middleware

// docs:begin handler
func bill(store *pgxstore.Store) message.NoPublishHandlerFunc {
	return func(msg *message.Message) error {
		tx, ok := store.TxFromContext(msg.Context())
		if !ok {
			return outbox.ErrNoTx // the Deduplicator is not among the middleware
		}
		_, err := tx.Exec(msg.Context(), "INSERT INTO bills (order_id) VALUES ($1)", string(msg.Payload))
		return err
	}
}

// docs:end handler

// docs:begin returned
func addBilling(
	router *message.Router, store *pgxstore.Store, subscriber message.Subscriber, handle message.HandlerFunc,
) error {
	publisher, err := outbox.NewPublisher(store)
	if err != nil {
		return err
	}
	router.AddHandler("bill-order", "orders.placed", subscriber, "orders.billed", publisher, handle)
	return nil
}

// docs:end returned

// shop is a router over Go channels.
type shop struct {
	store   *pgxstore.Store
	router  *message.Router
	pubSub  *gochannel.GoChannel
	running sync.WaitGroup
}

func newShop(t *testing.T, store *pgxstore.Store) *shop {
	t.Helper()
	return &shop{
		store:  store,
		router: message.NewDefaultRouter(watermill.NopLogger{}),
		pubSub: gochannel.NewGoChannel(gochannel.Config{BlockPublishUntilSubscriberAck: true}, watermill.NopLogger{}),
	}
}

func (s *shop) open(t *testing.T) {
	t.Helper()
	s.running.Go(func() { _ = s.router.Run(context.WithoutCancel(t.Context())) }) // ends when the router is closed
	<-s.router.Running()
	t.Cleanup(func() {
		require.NoError(t, s.router.Close())
		s.running.Wait()
	})
}

// Invariant: a message's effect comes about once, however often it is delivered and however often the handler fails.
func TestHandlingOnce_OneBillForAMessageThatFailsAndComesTwice(t *testing.T) {
	store, pool := newStore(t)
	s := newShop(t, store)
	poisonQueue, err := newPoisonQueue(store)
	require.NoError(t, err)
	require.NoError(t, addMiddleware(s.router, store, poisonQueue))
	var calls atomic.Int32
	require.NoError(t, addBilling(s.router, store, s.pubSub, func(msg *message.Message) ([]*message.Message, error) {
		if err := bill(store)(msg); err != nil {
			return nil, err
		}
		if calls.Add(1) == 1 {
			return nil, errors.New("after the write")
		}
		return []*message.Message{orderPlaced(string(msg.Payload))}, nil
	}))
	s.open(t)
	msg := orderPlaced("42")
	for range 2 {
		require.NoError(t, s.pubSub.Publish("orders.placed", msg.Copy()))
	}
	require.EqualValues(t, 2, calls.Load())
	require.Equal(t, 1, count(t, pool, "SELECT count(*) FROM bills"))
	require.Len(t, outboxtest.Messages(t, store, nil, "orders.billed"), 1)
	require.Empty(t, outboxtest.Messages(t, store, nil, "orders.poisoned"))
}

// docs:begin elsewhere
func addMailer(router *message.Router, store *pgxstore.Store, subscriber message.Subscriber, mailer string) error {
	dedup, err := outbox.NewDeduplicator(store.Processed(), "mail", outbox.WithEffectElsewhere())
	if err != nil {
		return err
	}
	handler := router.AddConsumerHandler("mail-customer", "orders.placed", subscriber, func(msg *message.Message) error {
		request, err := http.NewRequestWithContext(msg.Context(), http.MethodPost, mailer, strings.NewReader("Thank you!"))
		if err != nil {
			return err
		}
		request.Header.Set("Idempotency-Key", msg.UUID) // so that the other side can tell a second call
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			return err
		}
		defer func() { _ = response.Body.Close() }()
		if response.StatusCode >= http.StatusBadRequest {
			return fmt.Errorf("the mailer answers %s", response.Status)
		}
		return nil
	})
	handler.AddMiddleware(dedup.Middleware)
	return nil
}

// docs:end elsewhere

func TestHandlingOnce_AMailIsSentOnceForAMessageThatComesTwice(t *testing.T) {
	var mails atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Idempotency-Key") != "" {
			mails.Add(1)
		}
	}))
	defer server.Close()
	defer http.DefaultClient.CloseIdleConnections()
	store, _ := newStore(t)
	s := newShop(t, store)
	require.NoError(t, addMailer(s.router, store, s.pubSub, server.URL))
	s.open(t)
	msg := orderPlaced("42")
	for range 2 {
		require.NoError(t, s.pubSub.Publish("orders.placed", msg.Copy()))
	}
	require.EqualValues(t, 1, mails.Load())
}

// docs:begin message-id
func newEventDeduplicator(store *pgxstore.Store) (*outbox.Deduplicator, error) {
	return outbox.NewDeduplicator(store.Processed(), "billing", outbox.WithMessageID(
		func(msg *message.Message) (string, error) { return msg.Metadata.Get("event_id"), nil }))
}

// docs:end message-id

// docs:begin rollback
func ackErrors(handle message.NoPublishHandlerFunc) message.NoPublishHandlerFunc {
	return func(msg *message.Message) error {
		if err := handle(msg); err != nil {
			slog.Error("Trying again", "err", err)
			outbox.SetRollback(msg.Context()) // otherwise what handle has written would be committed
		}
		return nil
	}
}

// docs:end rollback

func TestHandlingOnce_TheIDIsTheFunctions(t *testing.T) {
	store, pool := newStore(t)
	dedup, err := newEventDeduplicator(store)
	require.NoError(t, err)
	handle := dedup.Middleware(func(msg *message.Message) ([]*message.Message, error) { return nil, bill(store)(msg) })
	for range 2 {
		msg := orderPlaced("42") // with a UUID of its own
		msg.Metadata.Set("event_id", "placed 42")
		_, err := handle(msg)
		require.NoError(t, err)
	}
	require.Equal(t, 1, count(t, pool, "SELECT count(*) FROM bills"))
}

func TestHandlingOnce_ASwallowedErrorRollsBack(t *testing.T) {
	store, pool := newStore(t)
	dedup, err := outbox.NewDeduplicator(store.Processed(), "billing")
	require.NoError(t, err)
	var end error
	swallowing := ackErrors(func(msg *message.Message) error { return errors.Join(bill(store)(msg), end) })
	handle := dedup.Middleware(func(msg *message.Message) ([]*message.Message, error) { return nil, swallowing(msg) })
	end = errors.New("after the write")
	_, err = handle(orderPlaced("42"))
	require.Error(t, err)
	require.Zero(t, count(t, pool, "SELECT count(*) FROM bills"))
	end = nil
	_, err = handle(orderPlaced("42"))
	require.NoError(t, err)
	require.Equal(t, 1, count(t, pool, "SELECT count(*) FROM bills"))
}

// docs:begin cleanup
func cleanUp(ctx context.Context, store *pgxstore.Store) {
	const retention = 7 * 24 * time.Hour // well above the longest time for which the broker may deliver again
	outbox.RunProcessedCleanup(ctx, store.Processed(), nil, retention, time.Hour)
}

// docs:end cleanup

func TestHandlingOnce_OldRecordsAreDeleted(t *testing.T) {
	store, pool := newStore(t)
	_, err := pool.Exec(t.Context(), `INSERT INTO outbox_processed (consumer_group, message_id, processed_at)
		VALUES ('billing', 'old', now() - interval '8 days'), ('billing', 'new', now())`)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { cleanUp(ctx, store) }) // ends with ctx
	require.Eventually(t, func() bool { return count(t, pool, "SELECT count(*) FROM outbox_processed") == 1 },
		patience, 10*time.Millisecond)
	cancel()
	running.Wait()
}

// docs:begin handler-gorm
func billWithGorm(ctx context.Context, db *gorm.DB, tx *sql.Tx, orderID string) error {
	// With a Context the session has a Statement of its own, and db stays as it is.
	session := db.Session(&gorm.Session{NewDB: true, Context: ctx, SkipDefaultTransaction: true})
	session.Statement.ConnPool = tx
	return session.Create(&Order{ID: orderID}).Error
}

// docs:end handler-gorm

// docs:begin handler-bun
func billWithBun(ctx context.Context, db *bun.DB, tx *sql.Tx, orderID string) error {
	_, err := db.NewInsert().Model(&Order{ID: orderID}).Conn(tx).Exec(ctx)
	return err
}

// docs:end handler-bun

// docs:begin handler-ent
func billWithEnt(ctx context.Context, tx *sql.Tx, orderID string) error {
	client := ent.NewClient(ent.Driver(entsql.NewDriver(dialect.Postgres, entsql.Conn{ExecQuerier: tx})))
	return client.Order.Create().SetID(orderID).Exec(ctx)
}

// docs:end handler-ent

// Invariant: what a library writes in the transaction of a handler goes with it.
func TestHandlingOnce_OtherLibrariesWriteInTheTransactionOfTheHandler(t *testing.T) {
	_, pool := newStore(t)
	db, err := sql.Open("pgx", pool.Config().ConnString())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	store, err := postgres.New(db)
	require.NoError(t, err)
	dedup, err := outbox.NewDeduplicator(store.Processed(), "billing")
	require.NoError(t, err)
	bunDB, gormDB := bun.NewDB(db, pgdialect.New()), gormOn(t, db, false)
	for name, write := range map[string]func(ctx context.Context, tx *sql.Tx, id string) error{
		"gorm": func(ctx context.Context, tx *sql.Tx, id string) error {
			defer func() { require.Same(t, db, gormDB.Statement.ConnPool) }()
			return billWithGorm(ctx, gormDB, tx, id)
		},
		"bun": func(ctx context.Context, tx *sql.Tx, id string) error { return billWithBun(ctx, bunDB, tx, id) },
		"ent": billWithEnt,
	} {
		t.Run(name, func(t *testing.T) {
			var end error
			handle := dedup.Middleware(func(msg *message.Message) ([]*message.Message, error) {
				tx, ok := store.TxFromContext(msg.Context())
				require.True(t, ok)
				require.NoError(t, write(msg.Context(), tx, name))
				return nil, end
			})
			end = errors.New("after the write")
			_, err := handle(orderPlaced(name))
			require.ErrorIs(t, err, end)
			require.Zero(t, count(t, pool, "SELECT count(*) FROM orders WHERE id = $1", name))
			end = nil
			_, err = handle(orderPlaced(name))
			require.NoError(t, err)
			require.Equal(t, 1, count(t, pool, "SELECT count(*) FROM orders WHERE id = $1", name))
		})
	}
}
