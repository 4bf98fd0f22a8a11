package pgxstore_test

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox/internal/pgtest"
)

// 32 writers lock aggregates, publish what has happened to them, and take their time to commit; some roll back, in whole
// or to savepoints. One has published and stays open all along. Two relays share the work over a broker that fails now
// and then; one of them is killed and replaced, or loses its database for a while, again and again, and the other loses
// its sessions. world.check says what must hold.
//
// OUTBOX_TORTURE_SEED sets what the random numbers are, OUTBOX_TORTURE_SECONDS how long it all takes.
func TestRelays_LoseNothingAndKeepOrder_HoweverTransactionsEnd(t *testing.T) {
	scenarios := map[string]scenario{
		"killed":       {server: pgtest.V15, seconds: 60},
		"18":           {server: pgtest.V18},
		"database/sql": {server: pgtest.V15, database: "database/sql"},
		"prepared":     {server: pgtest.V15, prepares: true},
		"plain SQL":    {server: pgtest.V15, plainSQL: true},
		"delays":       {server: pgtest.V15, delays: true},
		"joins":        {server: pgtest.V15, joins: true},
	}
	if testing.Short() {
		t.Skip("each takes many seconds")
	}
	for name, s := range scenarios {
		t.Run(name, func(t *testing.T) { torture(t, s) })
	}
}

func torture(t *testing.T, s scenario) {
	t.Helper()
	if s.seconds == 0 {
		s.seconds = 5
	}
	s.seconds = int(number(t, "OUTBOX_TORTURE_SECONDS", uint64(s.seconds)))
	w := newWorld(t, s)
	w.run(t)
	w.check(t)
}

func (w *world) run(t *testing.T) {
	t.Helper()
	steady := w.startRelay(t, "pgx")
	held := w.hold(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(w.scenario.seconds)*time.Second)
	defer cancel()
	var writing sync.WaitGroup
	for i := range writers {
		wr := &writer{w: w, number: i, random: rand.New(rand.NewPCG(w.seed, uint64(1+i)))}
		writing.Go(func() { wr.run(ctx) })
	}
	var other *relay
	if w.scenario.joins {
		other = w.startRelay(t, "pgx")
		w.joinAndLeave(t, ctx)
	} else {
		other = w.kill(t, ctx, steady)
	}
	writing.Wait()
	w.awaitAll(t) // although one transaction is still open
	held()
	w.awaitAll(t)
	steady.leave(t)
	other.leave(t)
	w.buried.Wait()
}

// hold begins a transaction that publishes and stays open. What it returns commits it.
func (w *world) hold(t *testing.T) (commit func()) {
	t.Helper()
	wr := &writer{w: w, number: writers, random: rand.New(rand.NewPCG(w.seed, uint64(1+writers)))}
	tx, err := w.pool.Begin(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { _ = tx.Rollback(context.Background()) })
	for range 5 {
		require.NoError(t, wr.change(t.Context(), tx, aggregates)) // which nobody else wants
	}
	if !w.scenario.prepares {
		return func() {
			require.NoError(t, wr.change(t.Context(), tx, aggregates))
			require.NoError(t, tx.Commit(t.Context()))
		}
	}
	name := w.schema + "-held"
	_, err = tx.Exec(t.Context(), "PREPARE TRANSACTION '"+name+"'")
	require.NoError(t, err)
	_ = tx.Rollback(t.Context()) // there is none any more; it gives the connection back
	return func() {
		_, err := w.pool.Exec(t.Context(), "COMMIT PREPARED '"+name+"'")
		require.NoError(t, err)
	}
}

// kill starts relays and cuts them off, until ctx ends. It returns one that is alive.
func (w *world) kill(t *testing.T, ctx context.Context, steady *relay) *relay {
	t.Helper()
	victim := w.startRelay(t, w.scenario.database)
	for {
		if w.random.IntN(3) == 0 {
			w.terminate(steady) // which costs nothing but time
		}
		if !w.wait(ctx, 2*tortureTTL) {
			return victim
		}
		switch w.random.IntN(4) {
		case 0: // it lives on without the database, and comes back
			victim.slowDown(w)
			w.wait(ctx, 6*tortureTTL)
			victim.rejoin()
			continue
		case 1: // it lives on without the database, and does not come back
			victim.slowDown(w)
			gone := victim
			w.buried.Go(func() {
				time.Sleep(5 * tortureTTL)
				gone.link.become(dead)
				w.bury(gone)
			})
		default:
			victim.crash(w)
		}
		w.wait(ctx, 2*tortureTTL)
		victim = w.startRelay(t, w.scenario.database)
	}
}

// joinAndLeave has a third relay share the work for a while, again and again, until ctx ends. Nothing is to land twice.
func (w *world) joinAndLeave(t *testing.T, ctx context.Context) {
	t.Helper()
	for more := true; more; {
		third := w.startRelay(t, "pgx")
		more = w.wait(ctx, 2*tortureTTL)
		third.leave(t)
		more = more && w.wait(ctx, tortureTTL)
	}
}

// wait lets a random time up to longest pass, and tells whether ctx has not ended meanwhile.
func (w *world) wait(ctx context.Context, longest time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(time.Duration(w.random.Int64N(int64(longest)))):
		return true
	}
}
