// Package docs has the code that the pages in docs show, and runs it.
package docs_test

import (
	"crypto/rand"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/watermill-outbox/outbox/internal/pgtest"
	"github.com/watermill-outbox/outbox/store/pgxstore"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// A meter of sarama's metrics and a cache of gorm's, which live as long as the process.
		goleak.IgnoreAnyFunction("github.com/rcrowley/go-metrics.(*meterArbiter).tick"),
		goleak.IgnoreAnyFunction("gorm.io/gorm/internal/lru.NewLRU[...].func1"),
	)
}

// patience is for what should come soon, on a machine that is busy.
const patience = time.Minute

// shopTables are what the examples write to. A duplicate is found at the commit only, so that an order placed twice is a
// transaction that is rolled back after it has published.
const shopTables = `
	CREATE TABLE orders (id text PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, version int NOT NULL DEFAULT 0);
	CREATE TABLE bills (order_id text NOT NULL);`

// newDatabase creates an empty database, since the examples use the default schema, and returns its address.
func newDatabase(t *testing.T) string {
	t.Helper()
	name := "docs_" + strings.ToLower(rand.Text()[:16])
	pgtest.Exec(t, pgtest.V15, "CREATE DATABASE "+name)
	t.Cleanup(func() { pgtest.Exec(t, pgtest.V15, "DROP DATABASE "+name) })
	address, err := url.Parse(pgtest.V15.URL())
	require.NoError(t, err)
	address.Path = name
	return address.String()
}

// newPool connects to an empty database with the shop's tables.
func newPool(t *testing.T) *pgxpool.Pool {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), newDatabase(t))
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	_, err = pool.Exec(t.Context(), shopTables)
	require.NoError(t, err)
	return pool
}

// newStore returns the outbox of an empty database.
func newStore(t *testing.T) (*pgxstore.Store, *pgxpool.Pool) {
	t.Helper()
	pool := newPool(t)
	store, err := pgxstore.New(pool)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	require.NoError(t, store.Migrate(t.Context()))
	return store, pool
}

// kafkaBrokers are the addresses of Kafka.
func kafkaBrokers() []string {
	if named := os.Getenv("WATERMILL_TEST_KAFKA_BROKERS"); named != "" {
		return strings.Split(named, ",")
	}
	return []string{"127.0.0.1:19092"}
}

// count returns what a query counts.
func count(t *testing.T, pool *pgxpool.Pool, query string, args ...any) (n int) {
	t.Helper()
	require.NoError(t, pool.QueryRow(t.Context(), query, args...).Scan(&n))
	return n
}

// brokerFunc is a broker.
type brokerFunc func(topic string, msg *message.Message) error

func (f brokerFunc) Close() error { return nil }

func (f brokerFunc) Publish(topic string, msgs ...*message.Message) error {
	for _, msg := range msgs {
		if err := f(topic, msg); err != nil {
			return err
		}
	}
	return nil
}
