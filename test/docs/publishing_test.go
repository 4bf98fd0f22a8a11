package docs_test

import (
	"context"
	"database/sql"
	"errors"
	"testing"
	"time"

	"entgo.io/ent/dialect"
	entsql "entgo.io/ent/dialect/sql"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/components/delay"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/jmoiron/sqlx"
	"github.com/stretchr/testify/require"
	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect/pgdialect"
	gormpg "gorm.io/driver/postgres"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/outboxtest"
	"github.com/watermill-outbox/outbox/store/memory"
	"github.com/watermill-outbox/outbox/store/pgxstore"
	"github.com/watermill-outbox/outbox/store/postgres"
	"github.com/watermill-outbox/outbox/test/docs/ent"
)

// docs:begin message
func orderPlaced(orderID string) *message.Message {
	msg := message.NewMessage(watermill.NewUUID(), []byte(orderID))
	outbox.SetKey(msg, orderID) // messages of one key stay in order
	return msg
}

// docs:end message

// docs:begin pgx
func placeOrderWithPgx(ctx context.Context, pool *pgxpool.Pool, store *pgxstore.Store, orderID string) error {
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "INSERT INTO orders (id) VALUES ($1)", orderID); err != nil {
			return err
		}
		return store.Publisher(tx).Publish("orders.placed", orderPlaced(orderID))
	})
}

// docs:end pgx

// docs:begin sql
func placeOrderWithSQL(ctx context.Context, db *sql.DB, store *postgres.Store, orderID string) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // does nothing after Commit
	if _, err := tx.ExecContext(ctx, "INSERT INTO orders (id) VALUES ($1)", orderID); err != nil {
		return err
	}
	if err := store.Publisher(tx).Publish("orders.placed", orderPlaced(orderID)); err != nil {
		return err
	}
	return tx.Commit()
}

// docs:end sql

// docs:begin sqlx
func placeOrderWithSqlx(ctx context.Context, db *sqlx.DB, store *postgres.Store, orderID string) error {
	tx, err := db.BeginTxx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := tx.NamedExecContext(ctx, "INSERT INTO orders (id) VALUES (:id)", Order{ID: orderID}); err != nil {
		return err
	}
	if err := store.Publisher(tx.Tx).Publish("orders.placed", orderPlaced(orderID)); err != nil {
		return err
	}
	return tx.Commit()
}

// docs:end sqlx

// docs:begin bun
func placeOrderWithBun(ctx context.Context, db *bun.DB, store *postgres.Store, orderID string) error {
	return db.RunInTx(ctx, nil, func(ctx context.Context, tx bun.Tx) error {
		if _, err := tx.NewInsert().Model(&Order{ID: orderID}).Exec(ctx); err != nil {
			return err
		}
		return store.Publisher(tx.Tx).Publish("orders.placed", orderPlaced(orderID))
	})
}

// docs:end bun

// docs:begin gorm
func placeOrderWithGorm(ctx context.Context, db *gorm.DB, store *postgres.Store, orderID string) error {
	return db.WithContext(ctx).Transaction(func(tx *gorm.DB) error {
		if err := tx.Create(&Order{ID: orderID}).Error; err != nil {
			return err
		}
		publisher := outbox.PublisherWithTx(store, tx.Statement.ConnPool)
		return publisher.Publish("orders.placed", orderPlaced(orderID))
	})
}

// docs:end gorm

// docs:begin ent
func placeOrderWithEnt(ctx context.Context, client *ent.Client, store *postgres.Store, orderID string) error {
	tx, err := client.Tx(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	if err := tx.Order.Create().SetID(orderID).Exec(ctx); err != nil {
		return err
	}
	publisher := outbox.PublisherWithTx(store, tx)
	if err := publisher.Publish("orders.placed", orderPlaced(orderID)); err != nil {
		return err
	}
	return tx.Commit()
}

// docs:end ent

// Order is a row, for those libraries that want a struct.
type Order struct {
	ID string
}

// Invariant: the message is there if and only if the transaction has committed. An order placed a second time fails at its
// commit, when its message has been written.
func TestPublishing_AMessageIsThereAfterTheCommitAndNotAfterARollback(t *testing.T) {
	store, pool := newStore(t)
	db, err := sql.Open("pgx", pool.Config().ConnString())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	sqlStore, err := postgres.New(db)
	require.NoError(t, err)
	client := ent.NewClient(ent.Driver(entsql.OpenDB(dialect.Postgres, db)))
	bunDB := bun.NewDB(db, pgdialect.New())
	ctx := t.Context()

	for name, place := range map[string]func(orderID string) error{
		"pgx":  func(id string) error { return placeOrderWithPgx(ctx, pool, store, id) },
		"sql":  func(id string) error { return placeOrderWithSQL(ctx, db, sqlStore, id) },
		"sqlx": func(id string) error { return placeOrderWithSqlx(ctx, sqlx.NewDb(db, "pgx"), sqlStore, id) },
		"bun":  func(id string) error { return placeOrderWithBun(ctx, bunDB, sqlStore, id) },
		"ent":  func(id string) error { return placeOrderWithEnt(ctx, client, sqlStore, id) },
		"gorm": func(id string) error { return placeOrderWithGorm(ctx, gormOn(t, db, false), sqlStore, id) },
		"gorm that prepares statements": func(id string) error {
			return placeOrderWithGorm(ctx, gormOn(t, db, true), sqlStore, id)
		},
		"the context": func(id string) error { return placeOrderByContext(ctx, pool, store, id) },
		"a transaction of the store": func(id string) error {
			publisher, err := outbox.NewPublisher(store)
			require.NoError(t, err)
			return placeOrderInTx(ctx, store, publisher, id)
		},
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, place(name))
			require.Error(t, place(name), "an order is placed twice")
			require.Equal(t, 1, count(t, pool, "SELECT count(*) FROM orders WHERE id = $1", name))
			require.Equal(t, 1, count(t, pool, "SELECT count(*) FROM outbox_messages WHERE key = $1", name))
		})
	}
}

func gormOn(t *testing.T, db *sql.DB, prepare bool) *gorm.DB {
	t.Helper()
	g, err := gorm.Open(gormpg.New(gormpg.Config{Conn: db}), &gorm.Config{PrepareStmt: prepare, Logger: logger.Discard})
	require.NoError(t, err)
	return g
}

// docs:begin context
func placeOrderByContext(ctx context.Context, pool *pgxpool.Pool, store *pgxstore.Store, orderID string) error {
	publisher, err := outbox.NewPublisher(store) // one for the whole application
	if err != nil {
		return err
	}
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "INSERT INTO orders (id) VALUES ($1)", orderID); err != nil {
			return err
		}
		msg := orderPlaced(orderID)
		msg.SetContext(store.ContextWithTx(ctx, tx))
		return publisher.Publish("orders.placed", msg)
	})
}

// docs:end context

// docs:begin in-tx
func placeOrderInTx(ctx context.Context, store *pgxstore.Store, publisher message.Publisher, orderID string) error {
	return store.InTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "INSERT INTO orders (id) VALUES ($1)", orderID); err != nil {
			return err
		}
		msg := orderPlaced(orderID)
		msg.SetContext(ctx) // which carries tx
		return publisher.Publish("orders.placed", msg)
	})
}

// docs:end in-tx

// What is no transaction is refused: with gorm that is easily passed by mistake.
func TestPublishing_RefusesTheConnectionPoolOfGormOutsideOfATransaction(t *testing.T) {
	_, pool := newStore(t)
	db, err := sql.Open("pgx", pool.Config().ConnString())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	store, err := postgres.New(db)
	require.NoError(t, err)
	for _, prepare := range []bool{false, true} {
		publisher := outbox.PublisherWithTx(store, gormOn(t, db, prepare).Statement.ConnPool)
		require.ErrorIs(t, publisher.Publish("orders.placed", orderPlaced("42")), outbox.ErrInvalidTx)
	}
	tx := gormOn(t, db, false).Begin()
	defer tx.Rollback()
	require.ErrorIs(t, outbox.PublisherWithTx(store, tx).Publish("orders.placed", orderPlaced("42")), outbox.ErrInvalidTx)
	require.Zero(t, count(t, pool, "SELECT count(*) FROM outbox_messages"))
}

// What wraps a *sql.Tx is taken as it is, as the documentation of the stores says.
func TestPublishing_TakesTransactionsThatWrapASQLTx(t *testing.T) {
	for name, begin := range map[string]func(t *testing.T, db *sql.DB) any{
		"sqlx": func(t *testing.T, db *sql.DB) any {
			tx, err := sqlx.NewDb(db, "pgx").Beginx()
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, tx.Rollback()) })
			return tx
		},
		"bun": func(t *testing.T, db *sql.DB) any {
			tx, err := bun.NewDB(db, pgdialect.New()).Begin()
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, tx.Rollback()) })
			return tx
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, pool := newStore(t)
			db, err := sql.Open("pgx", pool.Config().ConnString())
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, db.Close()) })
			store, err := postgres.New(db)
			require.NoError(t, err)
			tx := begin(t, db)
			publisher := outbox.PublisherWithTx(store, tx)
			require.NoError(t, publisher.Publish("orders.placed", orderPlaced("42")))
			require.Len(t, outboxtest.Messages(t, store, tx, "orders.placed"), 1)
			require.Zero(t, count(t, pool, "SELECT count(*) FROM outbox_messages"))
		})
	}
}

// docs:begin delay
func remindLater(tx *memory.Tx, store *memory.Store, orderID string) error {
	msg := orderPlaced(orderID)
	delay.Message(msg, delay.For(24*time.Hour)) // or delay.Until, or delay.WithContext around the context
	return store.Publisher(tx).Publish("orders.reminders", msg)
}

// docs:end delay

func TestPublishing_ADelayedMessageWaits(t *testing.T) {
	store, err := memory.New()
	require.NoError(t, err)
	tx := store.Begin()
	require.NoError(t, remindLater(tx, store, "42"))
	require.NoError(t, tx.Commit())

	broker := brokerFunc(func(string, *message.Message) error { return nil })
	require.Zero(t, outboxtest.Drain(t, store, broker))
	store.Advance(24 * time.Hour)
	require.Equal(t, 1, outboxtest.Drain(t, store, broker))
}

// docs:begin own-tx
func newPoisonQueue(store outbox.Store) (message.HandlerMiddleware, error) {
	publisher, err := outbox.NewPublisher(store, outbox.WithOwnTx())
	if err != nil {
		return nil, err
	}
	return middleware.PoisonQueue(publisher, "orders.poisoned")
}

// docs:end own-tx

// docs:begin key-func
func newKeyedPublisher(store outbox.Store) (*outbox.Publisher, error) {
	return outbox.NewPublisher(store, outbox.WithKeyRequired(), outbox.WithKeyFunc(
		func(_ string, msg *message.Message) (string, error) {
			return msg.Metadata.Get("customer_id"), nil // what your Kafka marshaler goes by already
		}))
}

// docs:end key-func

func TestPublishing_KeysComeFromTheFunction_AndWithoutOneThereIsAnError(t *testing.T) {
	store, err := memory.New()
	require.NoError(t, err)
	publisher, err := newKeyedPublisher(store)
	require.NoError(t, err)
	tx := store.Begin()
	msg := message.NewMessage(watermill.NewUUID(), nil)
	require.ErrorIs(t, publisher.WithTx(tx).Publish("orders.placed", msg), outbox.ErrNoKey)
	msg.Metadata.Set("customer_id", "7")
	require.NoError(t, publisher.WithTx(tx).Publish("orders.placed", msg))
	published := outboxtest.Messages(t, store, tx, "orders.placed")
	require.Len(t, published, 1)
	require.Equal(t, "7", outbox.Key(published[0]))
}

func TestPublishing_APoisonedMessageGoesToTheOutbox_WithoutATransaction(t *testing.T) {
	store, err := memory.New()
	require.NoError(t, err)
	poison, err := newPoisonQueue(store)
	require.NoError(t, err)
	handler := poison(func(*message.Message) ([]*message.Message, error) { return nil, errPoison })
	_, err = handler(orderPlaced("42"))
	require.NoError(t, err)
	require.Len(t, outboxtest.Messages(t, store, nil, "orders.poisoned"), 1)

	publisher, err := outbox.NewPublisher(store)
	require.NoError(t, err)
	require.ErrorIs(t, publisher.Publish("orders.placed", orderPlaced("42")), outbox.ErrNoTx)
}

var errPoison = errors.New("poison")
