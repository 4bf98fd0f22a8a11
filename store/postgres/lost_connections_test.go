package postgres_test

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/internal/pgtest"
	"github.com/watermill-outbox/outbox/internal/sqlstore"
	"github.com/watermill-outbox/outbox/store/postgres"
)

var drivers = []string{"pgx", "postgres"} // the second is lib/pq

func TestForwarder_LosesNothing_WhenItsSessionsAreTerminated(t *testing.T) {
	t.Parallel()
	times := 10
	if testing.Short() {
		times = 5
	}
	for _, driver := range drivers {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			a := newApp(t, driver, pgtest.V15.URL(), pgtest.Schema(t, pgtest.V15))
			for range times {
				a.awaitOrders(t, 20)
				pgtest.Exec(t, pgtest.V15, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1", a.schema)
			}
			a.finish(t)
		})
	}
}

func TestForwarder_LosesNothing_WhenTheServerCrashes(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("it starts servers")
	}
	for _, driver := range drivers {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			server := pgtest.Start(t)
			a := newApp(t, driver, server.URL(), "public")
			for range 2 {
				a.awaitOrders(t, 100)
				server.Stop(t, pgtest.Crash)
				server.Start(t)
			}
			a.finish(t)
		})
	}
}

// app is an application that loses its connections. Clerks take orders, each in a transaction that counts its key's orders
// up under a row lock and publishes one more, and go on whatever becomes of it. Two instances relay. In the end what the
// tables say is the truth:
//
//	P2  each order that is in them is at the broker
//	P3  nothing else is
//	P4  of each key, the first deliveries are 1, 2, 3 and so on
//	P6  nothing was counted as a failed attempt
//
// And every Run has gone on until it was stopped, and then returned nil. The sweep, which would find what the reads miss,
// never comes.
type app struct {
	driver, url, schema string
	db                  *sql.DB
	store               *postgres.Store
	sendHome, stop      context.CancelFunc // the clerks, the instances
	clerks, instances   sync.WaitGroup

	mu        sync.Mutex
	changed   chan struct{} // of one, when ordered has grown
	ordered   int           // orders whose commit was confirmed
	delivered []order
	wrong     []string
}

type order struct {
	uuid, key string
	n         int
}

const (
	appKeys     = 10
	appPatience = 30 * time.Second
)

func newApp(t *testing.T, driver, url, schema string) *app {
	t.Helper()
	a := &app{
		driver: driver, schema: schema, changed: make(chan struct{}, 1),
		url: fmt.Sprintf("%s?sslmode=disable&search_path=%s&application_name=%[2]s", url, schema),
	}
	a.db, a.store = a.open(t)
	require.NoError(t, a.store.Migrate(t.Context()))
	_, err := a.db.ExecContext(t.Context(), `
		CREATE TABLE counters (key text PRIMARY KEY, n int NOT NULL);
		CREATE TABLE orders (uuid text NOT NULL, key text NOT NULL, n int NOT NULL);
		INSERT INTO counters SELECT 'key-' || i, 0 FROM generate_series(0, 9) i`)
	require.NoError(t, err)
	var working, relaying context.Context
	working, a.sendHome = context.WithCancel(t.Context())
	relaying, a.stop = context.WithCancel(t.Context())
	t.Cleanup(func() { a.clerks.Wait(); a.instances.Wait() }) // before the handles are closed
	for range 2 {
		a.relay(t, relaying)
	}
	for range 8 {
		a.clerks.Go(func() {
			for working.Err() == nil {
				a.take(working)
			}
		})
	}
	return a
}

func (a *app) open(t *testing.T) (*sql.DB, *postgres.Store) {
	t.Helper()
	db, err := sql.Open(a.driver, a.url)
	require.NoError(t, err)
	t.Cleanup(func() { _ = db.Close() }) // its connections may be broken
	store, err := postgres.New(db, postgres.WithSchema(a.schema), postgres.WithLeaseTTL(testTTL),
		func(o *sqlstore.Options) { o.SweepInterval = time.Hour })
	require.NoError(t, err)
	return db, store
}

func (a *app) relay(t *testing.T, ctx context.Context) {
	t.Helper()
	_, store := a.open(t)
	f, err := outbox.NewForwarder(store, a, outbox.WithLogger(watermill.NopLogger{}), outbox.WithPollInterval(50*time.Millisecond),
		outbox.WithObserver(outbox.ObserverFunc(a.observe)))
	require.NoError(t, err)
	a.instances.Go(func() {
		if err := f.Run(ctx); ctx.Err() == nil || err != nil {
			a.failf("Run has returned %v", err)
		}
	})
}

// take takes one order.
func (a *app) take(ctx context.Context) {
	key, n := "key-"+strconv.Itoa(rand.IntN(appKeys)), 0
	err := a.store.InTx(ctx, func(ctx context.Context, tx *sql.Tx) error {
		err := tx.QueryRowContext(ctx, "UPDATE counters SET n = n + 1 WHERE key = $1 RETURNING n", key).Scan(&n)
		if err != nil {
			return err
		}
		msg := message.NewMessage(watermill.NewUUID(), []byte(strconv.Itoa(n)))
		outbox.SetKey(msg, key)
		if _, err := tx.ExecContext(ctx, "INSERT INTO orders VALUES ($1, $2, $3)", msg.UUID, key, n); err != nil {
			return err
		}
		return a.store.Publisher(tx).Publish("orders", msg)
	})
	if err != nil {
		select { // as long as a clerk is at a loss
		case <-ctx.Done():
		case <-time.After(10 * time.Millisecond):
		}
		return
	}
	a.mu.Lock()
	a.ordered++
	a.mu.Unlock()
	select {
	case a.changed <- struct{}{}:
	default:
	}
}

func (a *app) awaitOrders(t *testing.T, n int) {
	t.Helper()
	timeout, ordered := time.After(appPatience), func() int {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.ordered
	}
	for want := ordered() + n; ordered() < want; {
		select {
		case <-a.changed:
		case <-timeout:
			t.Fatal("nobody takes orders any more")
		}
	}
}

func (a *app) failf(format string, args ...any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.wrong = append(a.wrong, fmt.Sprintf(format, args...))
}

// Publish is the broker.
func (a *app) Publish(_ string, msgs ...*message.Message) error {
	n, err := strconv.Atoi(string(msgs[0].Payload))
	time.Sleep(time.Duration(rand.IntN(1000)) * time.Microsecond) // so that some are on their way at any time
	a.mu.Lock()
	defer a.mu.Unlock()
	a.delivered = append(a.delivered, order{msgs[0].UUID, outbox.Key(msgs[0]), n})
	return err
}

func (a *app) Close() error { return nil }

func (a *app) observe(_ context.Context, event outbox.Event) {
	switch e := event.(type) {
	case outbox.ClaimedEvent:
		for _, m := range e.Messages {
			if m.Retries != 0 {
				a.failf("%s has %d retries", m.UUID, m.Retries)
			}
		}
	case outbox.FailedEvent:
		a.failf("%s has failed: %v", e.Message.UUID, e.Err)
	case outbox.SetAsideEvent:
		a.failf("%s was set aside: %v", e.Message.UUID, e.Err)
	}
}

// finish waits until the outbox is empty, and compares what is at the broker with the tables.
func (a *app) finish(t *testing.T) {
	t.Helper()
	a.sendHome()
	a.clerks.Wait()
	for deadline, left := time.Now().Add(appPatience), []string{"something"}; len(left) > 0; {
		var err error
		left, err = column[string](t.Context(), a.db, "SELECT format('%s of %s, %s retries', id, key, retries) FROM outbox_messages LIMIT 10")
		if time.Now().After(deadline) {
			t.Fatalf("these are stuck: %q %v", left, err)
		}
		if err != nil {
			left = []string{"something"}
		}
		time.Sleep(20 * time.Millisecond) // there is no signal for an empty table
	}
	a.stop()
	a.instances.Wait()
	uuids, err := column[string](t.Context(), a.db, "SELECT uuid FROM orders ORDER BY key, n")
	require.NoError(t, err)
	a.mu.Lock()
	defer a.mu.Unlock()
	require.Empty(t, a.wrong)
	next, first := map[string]int{}, map[string]bool{}
	for _, o := range a.delivered {
		if first[o.uuid] {
			continue
		}
		first[o.uuid] = true
		next[o.key]++
		require.Equal(t, next[o.key], o.n, "of %s", o.key)
	}
	for _, uuid := range uuids {
		require.True(t, first[uuid], "an order was lost")
	}
	require.Len(t, uuids, len(first), "orders that were rolled back are at the broker")
	t.Logf("%d orders, %d deliveries", len(uuids), len(a.delivered))
}
