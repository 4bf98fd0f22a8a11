package pgxstore_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/internal/pgtest"
	"github.com/watermill-outbox/outbox/internal/sqlstore"
	"github.com/watermill-outbox/outbox/store/pgxstore"
)

// openThrough returns a pool whose connections may fall into the hole.
func openThrough(t *testing.T, hole *pgtest.BlackHole, url string) *pgxpool.Pool {
	t.Helper()
	config, err := pgxpool.ParseConfig(url)
	require.NoError(t, err)
	config.ConnConfig.DialFunc = hole.DialContext
	config.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec // so that each statement says what it is
	pool, err := pgxpool.NewWithConfig(context.Background(), config)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	t.Cleanup(hole.Close) // before that
	return pool
}

// impatient is for stores that are to give up soon.
func impatient(o *sqlstore.Options) { o.MinPatience = shopTTL }

// Invariant: what an instance waits for without end, it must not keep from the others. Its heartbeat goes on, on another
// connection, so that its slots are nobody else's while a Claim waits.
func TestForwarder_LosesNothing_WhenTheConnectionThatItReadsFromIsHalfOpen(t *testing.T) {
	t.Parallel()
	for _, instances := range []int{1, 2} {
		t.Run(fmt.Sprintf("%d of them", instances), func(t *testing.T) {
			hole := &pgtest.BlackHole{}
			s := newShopInSchema(t)
			s.opts = append(s.opts, impatient)
			s.relay(t, instances-1)
			s.relayThrough(t, hole)
			s.openDoors(t, 4)
			s.awaitOrders(t, 100)
			<-hole.Next("begin read only")
			s.awaitOrders(t, 100)
			s.finish(t, false)
			require.NotEmpty(t, s.logged(), "the Claim that was given up")
		})
	}
}

// relayThrough starts one more instance, whose connections may fall into a hole.
func (s *shop) relayThrough(t *testing.T, hole *pgtest.BlackHole) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	stopOthers := s.stopAll
	s.stopAll = func() { stopOthers(); cancel() }
	f, err := outbox.NewForwarder(s.open(t, openThrough(t, hole, s.url)), s, outbox.WithLogger(shopLog{shop: s}),
		outbox.WithPollInterval(50*time.Millisecond), outbox.WithObserver(outbox.ObserverFunc(func(_ context.Context, e outbox.Event) {
			s.observe(-1, e)
		})))
	require.NoError(t, err)
	s.running.Go(func() {
		if err := f.Run(ctx); ctx.Err() == nil || err != nil {
			s.failf("Run has returned %v", err)
		}
	})
}

// deadStore is one that relays, and whose connections are all in the hole.
func deadStore(t *testing.T) *pgxstore.Store {
	t.Helper()
	hole, schema := &pgtest.BlackHole{}, pgtest.Schema(t, pgtest.V15)
	store, err := pgxstore.New(openThrough(t, hole, pgtest.V15.URL()), pgxstore.WithSchema(schema), pgxstore.WithLeaseTTL(testTTL), impatient,
		func(o *sqlstore.Options) { o.SweepInterval = 2 * time.Millisecond })
	require.NoError(t, err)
	require.NoError(t, store.Migrate(t.Context()))
	claimOnce(t, store, 1)
	hole.All()
	return store
}

func TestStore_CloseReturns_WhenItsConnectionsAreDead(t *testing.T) {
	t.Parallel()
	store := deadStore(t)
	require.ErrorIs(t, within(t, store.Close), context.DeadlineExceeded)
}

func TestStore_ReleaseReturnsWithItsContext_WhenItsConnectionsAreDead(t *testing.T) {
	t.Parallel()
	store := deadStore(t)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, within(t, func() error { return store.Release(ctx) }), context.DeadlineExceeded)
	require.Error(t, within(t, store.Close))
}

// Each Claim after a Release begins to sweep again.
func TestStore_ReleaseReturns_WhileOthersClaimAndSweep(t *testing.T) {
	t.Parallel()
	schema, pool := pgtest.Schema(t, pgtest.V15), ways["15"].open(t)
	store, err := pgxstore.New(pool, pgxstore.WithSchema(schema), func(o *sqlstore.Options) { o.SweepInterval = 2 * time.Millisecond })
	require.NoError(t, err)
	require.NoError(t, store.Migrate(t.Context()))
	ctx, stop := context.WithCancel(t.Context())
	var claiming sync.WaitGroup
	claiming.Go(func() {
		for ctx.Err() == nil {
			_, _ = store.Claim(ctx, 1, math.MaxInt32) // it may come to nothing, and its error too
		}
	})
	for range 50 {
		_ = within(t, func() error {
			ctx, cancel := context.WithTimeout(ctx, 5*time.Millisecond)
			defer cancel()
			return store.Release(ctx) // which may be too short
		})
	}
	stop()
	claiming.Wait()
	require.NoError(t, within(t, store.Close))
}

// Invariant: the sweep, which finds what the reads have passed, does not end with a connection.
func TestStore_SweepsOn_WhenTheConnectionThatASweepReadsFromIsHalfOpen(t *testing.T) {
	t.Parallel()
	hole, schema := &pgtest.BlackHole{}, pgtest.Schema(t, pgtest.V15)
	pool := openThrough(t, hole, pgtest.V15.URL())
	store, err := pgxstore.New(pool, pgxstore.WithSchema(schema), pgxstore.WithLeaseTTL(testTTL), impatient,
		func(o *sqlstore.Options) { o.SweepInterval = 2 * time.Millisecond })
	require.NoError(t, err)
	require.NoError(t, store.Migrate(t.Context()))
	require.NoError(t, store.Save(t.Context(), nil, outbox.Message{Topic: "first"}))
	for len(claimOnce(t, store, 1)) == 0 {
	}
	require.NoError(t, within(t, func() error { <-hole.Next("SELECT id, slot, key, topic"); return nil }))

	_, err = pool.Exec(t.Context(), "INSERT INTO "+schema+".outbox_messages (id, topic) OVERRIDING SYSTEM VALUE VALUES (1, 'missed')")
	require.NoError(t, err)
	var found []outbox.Message
	for begun := time.Now(); len(found) == 0; found = claimOnce(t, store, 1) {
		if time.Since(begun) > shopPatience {
			t.Error("nobody sweeps any more")
			break
		}
		time.Sleep(time.Millisecond) // not to wait for anything: as a relay would
	}
	require.NoError(t, store.Close())
}

// within fails if f does not return.
func within(t *testing.T, f func() error) error {
	t.Helper()
	returned := make(chan error, 1)
	go func() { returned <- f() }() // ends when the test does at the latest, with its connections
	select {
	case err := <-returned:
		return err
	case <-time.After(shopPatience):
		t.Fatal("it does not return")
		return errors.New("unreachable")
	}
}
