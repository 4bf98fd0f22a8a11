package pgxstore_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox/internal/pgtest"
	"github.com/watermill-outbox/outbox/internal/sqlstore"
	"github.com/watermill-outbox/outbox/store/pgxstore"
)

// scenario is what is done to the outbox, beside what is always done.
type scenario struct {
	server   pgtest.Server
	seconds  int
	database string // of the relay that is cut off; the other one always has a pgx pool
	prepares bool   // a third of the transactions end with PREPARE TRANSACTION, and are committed by another session
	plainSQL bool   // a third of the messages come by INSERT and a third by COPY
	delays   bool   // some messages are delayed, and some have no key
	joins    bool   // a third relay joins and leaves, instead of one being killed
}

const (
	aggregates = 200
	writers    = 32
)

// world is an application with an outbox.
type world struct {
	server   pgtest.Server
	scenario scenario
	seed     uint64
	random   *rand.Rand // of the goroutine that runs the test
	schema   string
	pool     *pgxpool.Pool
	store    *pgxstore.Store
	broker   *broker

	relays int
	all    []*relay
	buried sync.WaitGroup

	committed, rolledBack, partly, prepared atomic.Int64

	mu   sync.Mutex
	errs []error
}

func newWorld(t *testing.T, s scenario) *world {
	t.Helper()
	seed := number(t, "OUTBOX_TORTURE_SEED", rand.Uint64())
	t.Logf("OUTBOX_TORTURE_SEED=%d", seed)
	w := &world{
		server: s.server, scenario: s, seed: seed, random: rand.New(rand.NewPCG(seed, 0)), schema: pgtest.Schema(t, s.server),
		broker: newBroker(),
	}
	config, err := pgxpool.ParseConfig(s.server.URL())
	require.NoError(t, err)
	config.MaxConns = writers + 8
	config.ConnConfig.RuntimeParams["synchronous_commit"] = "off" // more transactions; the server does not crash
	w.pool, err = pgxpool.NewWithConfig(context.Background(), config)
	require.NoError(t, err)
	t.Cleanup(w.pool.Close)
	options := []pgxstore.Option{pgxstore.WithSchema(w.schema)}
	if s.prepares {
		options = append(options, pgxstore.WithoutNotify())
	}
	w.store, err = pgxstore.New(w.pool, options...)
	require.NoError(t, err)
	require.NoError(t, w.store.Migrate(t.Context()))
	t.Cleanup(func() { require.NoError(t, w.store.Close()) })
	_, err = w.pool.Exec(t.Context(), fmt.Sprintf(`
		CREATE TABLE %[1]s.aggregates (id bigint PRIMARY KEY, version bigint NOT NULL DEFAULT 0);
		INSERT INTO %[1]s.aggregates (id) SELECT generate_series(0, %[2]d);
		-- What was published, in the same transaction. Of each aggregate the numbers are 1, 2, 3 and so on.
		CREATE TABLE %[1]s.sent (uuid text NOT NULL, aggregate bigint, number bigint NOT NULL, due timestamptz)`,
		w.schema, aggregates))
	require.NoError(t, err)
	t.Cleanup(func() { w.rollBackPrepared(t) }) // they would keep the schema
	return w
}

func number(t *testing.T, variable string, otherwise uint64) uint64 {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	require.NoError(t, err, variable)
	return n
}

func (w *world) rollBackPrepared(t *testing.T) {
	t.Helper()
	names, err := column[string](context.Background(), w.pool, "SELECT gid FROM pg_prepared_xacts WHERE gid LIKE $1 || '%'", w.schema)
	require.NoError(t, err)
	for _, name := range names {
		_, err := w.pool.Exec(context.Background(), "ROLLBACK PREPARED '"+name+"'")
		require.NoError(t, err)
	}
}

func (w *world) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.errs = append(w.errs, err)
}

// published is a message whose transaction has committed.
type published struct {
	uuid      string
	aggregate *int64 // nil for messages that have no order
	number    int64
	due       *time.Time
}

func (w *world) published(t *testing.T, where string) []published {
	t.Helper()
	rows, err := w.pool.Query(t.Context(), "SELECT uuid, aggregate, number, due FROM "+w.schema+".sent "+where)
	require.NoError(t, err)
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (p published, err error) {
		err = row.Scan(&p.uuid, &p.aggregate, &p.number, &p.due)
		return p, err
	})
	require.NoError(t, err)
	return all
}

// awaitAll waits until the broker has all that was committed up to now.
func (w *world) awaitAll(t *testing.T) {
	t.Helper()
	var uuids []string
	for _, p := range w.published(t, "") {
		uuids = append(uuids, p.uuid)
	}
	const patience = 20 * time.Second
	watchdog := time.NewTimer(patience)
	defer watchdog.Stop()
	for left := w.broker.missing(uuids); len(left) > 0; left = w.broker.missing(left) {
		select {
		case <-w.broker.landed:
			watchdog.Reset(patience)
		case <-watchdog.C:
			t.Fatalf("%d messages are lost, or nothing moves any more: %v", len(left), left[:min(len(left), 10)])
		}
	}
}

// check compares what was published with what the broker has.
//
//	P2  all that was committed is there
//	P3  nothing else is
//	P4  of each aggregate, the first landings are 1, 2, 3 and so on
//
// A message lands again only if its relay was told that it had not, or if one of the two relays was interrupted between
// its claim and the second landing: at most as many as it may have in flight, for each time. Delayed messages land when they are
// due, or later. No row is left, and no sweep has found any.
func (w *world) check(t *testing.T) {
	t.Helper()
	messages := map[string]published{}
	for _, p := range w.published(t, "") {
		messages[p.uuid] = p
	}
	next, times := map[int64]int64{}, map[string][]landing{}
	phantoms, disorder := 0, 0
	for _, l := range w.broker.landings {
		p, ok := messages[l.uuid]
		if !ok {
			phantoms++
			continue
		}
		if times[l.uuid] = append(times[l.uuid], l); len(times[l.uuid]) > 1 {
			continue
		}
		if p.due != nil && l.at.Before(*p.due) {
			t.Errorf("a delayed message landed %v too early", p.due.Sub(l.at))
		}
		if p.aggregate == nil {
			continue
		}
		if next[*p.aggregate]++; p.number != next[*p.aggregate] {
			if disorder++; disorder <= 10 {
				t.Errorf("of aggregate %d, %d landed when %d was next (%s)", *p.aggregate, p.number, next[*p.aggregate], l.by.name)
			}
			next[*p.aggregate] = p.number
		}
	}
	require.Zero(t, phantoms, "messages of transactions that were rolled back")
	require.Len(t, times, len(messages), "messages are lost")
	require.Zero(t, disorder, "messages that came out of order")
	again := w.checkAgain(t, times)
	w.checkRelays(t)
	var left int
	require.NoError(t, w.pool.QueryRow(t.Context(), fmt.Sprintf(
		"SELECT (SELECT count(*) FROM %[1]s.outbox_messages) + (SELECT count(*) FROM %[1]s.outbox_archive)", w.schema)).Scan(&left))
	require.Zero(t, left, "rows that are left")
	t.Logf("%d messages of %d transactions (%d rolled back, %d in part, %d prepared), %d relays; %d landed again after "+
		"an interruption", len(messages), w.committed.Load(), w.rolledBack.Load(), w.partly.Load(), w.prepared.Load(), w.relays, again)
}

// checkAgain accounts for what has landed more than once.
func (w *world) checkAgain(t *testing.T, times map[string][]landing) (again int) {
	t.Helper()
	byRelay, unaccounted := map[*relay]int{}, 0
	for _, landings := range times {
		for i, l := range landings[:len(landings)-1] {
			next := landings[i+1]
			switch {
			case l.failed:
			case l.by.interrupted(l.claimed, next.at): // before the mark, perhaps
				byRelay[l.by]++
				again++
			case next.by.interrupted(next.claimed, next.at): // and somebody else had taken over
				byRelay[next.by]++
				again++
			default:
				if unaccounted++; unaccounted <= 10 {
					t.Errorf("%s landed by %s and again by %s %v later, claimed %v and %v before", l.uuid, l.by.name, next.by.name,
						next.at.Sub(l.at), l.at.Sub(l.claimed), next.at.Sub(next.claimed))
					next.by.tellLeases(t, next.at)
				}
			}
		}
	}
	require.Zero(t, unaccounted, "messages that landed again although no relay that had them was interrupted")
	for r, n := range byRelay {
		// Twice, since relays may publish what they have in flight both before and after what has taken over from them.
		require.LessOrEqual(t, n, 2*tortureInFlight*len(r.interruptions), "%s: landed again", r.name)
	}
	return again
}

func (w *world) checkRelays(t *testing.T) {
	t.Helper()
	stalls := 0
	for _, r := range w.all {
		require.Zero(t, r.link.overtime, "%s: calls of Publish that began after the leases had ended", r.name)
		require.Zero(t, sqlstore.SweepFinds(r.store), "%s: what sweeps have found", r.name)
		stalls += r.stalls
	}
	if stalls > 0 {
		t.Logf("%d times a relay was too slow to renew its leases", stalls)
	}
	require.NoError(t, errors.Join(w.errs...))
}
