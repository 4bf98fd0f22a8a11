package postgres_test

import (
	"context"
	"database/sql"
	"math"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/lib/pq"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/internal/pgtest"
	"github.com/watermill-outbox/outbox/internal/sqlstore"
	"github.com/watermill-outbox/outbox/store/postgres"
)

// openThrough are ways to open a handle whose connections may fall into a hole.
var openThrough = map[string]func(t *testing.T, hole *pgtest.BlackHole) *sql.DB{
	"pgx": func(t *testing.T, hole *pgtest.BlackHole) *sql.DB {
		t.Helper()
		config, err := pgx.ParseConfig(pgtest.V15.URL())
		require.NoError(t, err)
		config.DialFunc = hole.DialContext
		return stdlib.OpenDB(*config)
	},
	"pq": func(t *testing.T, hole *pgtest.BlackHole) *sql.DB {
		t.Helper()
		connector, err := pq.NewConnector(pgtest.V15.URL() + "?sslmode=disable")
		require.NoError(t, err)
		connector.Dialer(hole)
		return sql.OpenDB(connector)
	},
}

// Invariant: what an instance waits for without end, it must not keep from the others, however its driver takes the end of a
// context. Its heartbeat goes on, on another connection, so that its slots are nobody else's while a Claim waits.
func TestStore_ClaimReturns_WhenTheConnectionThatItReadsFromIsHalfOpen(t *testing.T) {
	t.Parallel()
	for driver, open := range openThrough {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			schema, hole := pgtest.Schema(t, pgtest.V15), &pgtest.BlackHole{}
			db := open(t, hole)
			t.Cleanup(func() { _ = db.Close() }) // its connections may be broken
			store, err := postgres.New(db, postgres.WithSchema(schema), postgres.WithLeaseTTL(testTTL),
				func(o *sqlstore.Options) { o.MinPatience = testTTL })
			require.NoError(t, err)
			require.NoError(t, store.Migrate(t.Context()))
			_, err = store.Claim(t.Context(), 1, math.MaxInt32)
			require.NoError(t, err)
			require.NoError(t, store.Save(t.Context(), nil, outbox.Message{Topic: "topic"}))

			hole.Next("read only")
			ended := make(chan error, 1)
			go func() { // ends when the hole is closed, at the latest
				_, err := store.Claim(t.Context(), 1, math.MaxInt32)
				ended <- err
			}()
			if driver == "pgx" {
				require.ErrorIs(t, <-ended, context.DeadlineExceeded)
				msgs, err := store.Claim(t.Context(), 1, math.MaxInt32)
				require.NoError(t, err)
				require.Len(t, msgs, 1)
			} else { // lib/pq waits for as long as TCP does
				other, err := postgres.New(db, postgres.WithSchema(schema), postgres.WithLeaseTTL(testTTL))
				require.NoError(t, err)
				require.Eventually(t, func() bool {
					msgs, err := other.Claim(t.Context(), 1, math.MaxInt32)
					return err == nil && len(msgs) == 1
				}, appPatience, 10*time.Millisecond, "nobody else gets its slots")
				require.NoError(t, other.Close())
				hole.Close()
				require.Error(t, <-ended)
			}
			hole.Close()
			require.NoError(t, store.Close())
		})
	}
}

// The same for marks, on which the later messages of each key wait. (A mark by pgx ends with its context.)
func TestForwarders_PublishEverything_WhenTheConnectionThatOneOfThemMarksOnIsHalfOpen(t *testing.T) {
	t.Parallel()
	const keys, perKey = 50, 4
	schema, hole := pgtest.Schema(t, pgtest.V15), &pgtest.BlackHole{}
	arrived := &arrivals{uuids: map[string]bool{}, changed: make(chan struct{}, 1)}
	start := func(hole *pgtest.BlackHole) *postgres.Store {
		db := openThrough["pq"](t, hole)
		t.Cleanup(func() { _ = db.Close() }) // its connections may be broken
		store, err := postgres.New(db, postgres.WithSchema(schema), postgres.WithLeaseTTL(testTTL),
			func(o *sqlstore.Options) { o.MinPatience = testTTL })
		require.NoError(t, err)
		require.NoError(t, store.Migrate(t.Context()))
		f, err := outbox.NewForwarder(store, arrived, outbox.WithLogger(watermill.NopLogger{}), outbox.WithPollInterval(50*time.Millisecond))
		require.NoError(t, err)
		ended := make(chan error, 1)
		go func() { ended <- f.Run(context.Background()) }() // ends with Close
		<-f.Running()
		t.Cleanup(func() {
			_ = f.Close() // which may miss its connections
			<-ended       //nolint:errcheck // the same
		})
		return store
	}
	start(hole)
	other := start(&pgtest.BlackHole{})
	t.Cleanup(hole.Close)
	fell := hole.Next("DELETE FROM")
	for i := range keys * perKey {
		require.NoError(t, other.Save(t.Context(), nil, outbox.Message{Topic: "topic", Key: strconv.Itoa(i % keys)}))
	}
	<-fell
	arrived.await(t, keys*perKey)
}

// arrivals is a broker that counts messages.
type arrivals struct {
	changed chan struct{} // of one

	mu    sync.Mutex
	uuids map[string]bool
}

func (a *arrivals) Close() error { return nil }

func (a *arrivals) Publish(_ string, msgs ...*message.Message) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.uuids[msgs[0].UUID] = true
	select {
	case a.changed <- struct{}{}:
	default:
	}
	return nil
}

func (a *arrivals) await(t *testing.T, n int) {
	t.Helper()
	timeout := time.After(appPatience)
	for got := 0; got < n; {
		select {
		case <-a.changed:
		case <-timeout:
			t.Fatalf("only %d of %d messages arrive", got, n)
		}
		a.mu.Lock()
		got = len(a.uuids)
		a.mu.Unlock()
	}
}
