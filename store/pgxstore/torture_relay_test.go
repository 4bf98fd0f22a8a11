package pgxstore_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/internal/sqlstore"
	"github.com/watermill-outbox/outbox/store/pgxstore"
	"github.com/watermill-outbox/outbox/store/postgres"
)

const (
	tortureTTL = 500 * time.Millisecond
	// tortureInFlight bounds what a relay publishes again of what another one has published.
	tortureInFlight = 300
)

// network is a relay's way to the database. Cut off, it loses all connections and gets no new ones, and the server is not
// told: a statement under way may have its effect.
type network struct {
	mu    sync.Mutex
	cut   bool
	conns map[net.Conn]struct{}
}

type tracked struct {
	net.Conn
	network *network
}

func (c tracked) Close() error {
	c.network.mu.Lock()
	delete(c.network.conns, c.Conn)
	c.network.mu.Unlock()
	return c.Conn.Close()
}

func (n *network) dial(ctx context.Context, kind, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, kind, address)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cut {
		return nil, errors.Join(errors.New("no network"), conn.Close())
	}
	n.conns[conn] = struct{}{}
	return tracked{conn, n}, nil
}

func (n *network) cutOff() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut = true
	for conn := range n.conns {
		_ = conn.Close() // its owner notices
	}
	clear(n.conns)
}

func (n *network) heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut = false
}

// relay is a relaying instance: a process, as far as the database and the broker can tell.
type relay struct {
	name    string
	network *network
	pool    *pgxpool.Pool
	store   outbox.LeasedStore
	link    *link
	stop    context.CancelFunc
	ended   chan error // of one

	mu       sync.Mutex
	isolated bool
	// interruptions are when it was cut off from the database, or was too slow to renew its leases.
	interruptions []interruption
	stalls        int
	claimed       map[string]time.Time // by uuid, when it was claimed last
	leases        []leaseChange        // to be told when something is wrong
}

// leaseChange is when the relay heard of slots that it has gained, or lost.
type leaseChange struct {
	at    time.Time
	event outbox.Event
}

// interruption ends at the zero time if it does not end.
type interruption struct{ from, to time.Time }

func (w *world) startRelay(t *testing.T, database string) *relay {
	t.Helper()
	w.relays++
	r := &relay{
		name: fmt.Sprintf("%s/%d", w.schema, w.relays), network: &network{conns: map[net.Conn]struct{}{}}, ended: make(chan error, 1),
		claimed: map[string]time.Time{},
	}
	config, err := pgxpool.ParseConfig(w.server.URL())
	require.NoError(t, err)
	config.MaxConns = 6
	config.ConnConfig.DialFunc = r.network.dial
	config.ConnConfig.RuntimeParams["application_name"] = r.name
	r.pool, err = pgxpool.NewWithConfig(context.Background(), config)
	require.NoError(t, err)
	options := []func(*sqlstore.Options){func(o *sqlstore.Options) {
		o.Schema, o.LeaseTTL, o.SweepInterval, o.NoNotify = w.schema, tortureTTL, 200*time.Millisecond, w.scenario.prepares
	}}
	if database == "database/sql" {
		db := stdlib.OpenDBFromPool(r.pool)
		db.SetMaxOpenConns(6)
		t.Cleanup(func() { _ = db.Close() }) // the pool is closed by then
		r.store, err = postgres.New(db, options[0])
	} else {
		r.store, err = pgxstore.New(r.pool, options[0])
	}
	require.NoError(t, err)
	r.link = &link{
		broker: w.broker, relay: r, changed: make(chan struct{}), random: rand.New(rand.NewPCG(w.seed, uint64(1000+w.relays))),
	}
	forwarder, err := outbox.NewForwarder(r.store, r.link,
		outbox.WithMaxInFlight(tortureInFlight), outbox.WithBatchSize(100), outbox.WithConcurrency(64),
		outbox.WithMaxRetries(1_000_000), outbox.WithRetryBackoff(5*time.Millisecond, 50*time.Millisecond),
		outbox.WithPollInterval(50*time.Millisecond), outbox.WithCloseTimeout(10*tortureTTL),
		outbox.WithLogger(watermill.NopLogger{}), outbox.WithObserver(outbox.ObserverFunc(r.observe)))
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	r.stop = cancel
	go func() { r.ended <- forwarder.Run(ctx) }() // ends with stop
	w.all = append(w.all, r)
	return r
}

func (r *relay) observe(_ context.Context, event outbox.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch event.(type) {
	case outbox.LeaseGainedEvent, outbox.LeaseLostEvent:
		r.leases = append(r.leases, leaseChange{time.Now(), event})
	}
	switch e := event.(type) {
	case outbox.ClaimedEvent:
		for _, m := range e.Messages {
			r.claimed[m.UUID] = time.Now()
		}
	case outbox.LeaseLostEvent:
		if e.Err != nil && !r.isolated { // some time ago, if the machine is that busy
			r.interruptions = append(r.interruptions, interruption{time.Now().Add(-2 * tortureTTL), time.Now()})
			r.stalls++
		}
	}
}

// tellLeases logs how the relay's slots have changed within some seconds of at.
func (r *relay) tellLeases(t *testing.T, at time.Time) {
	t.Helper()
	for _, l := range r.leases {
		if since := at.Sub(l.at); since > -2*time.Second && since < 5*time.Second {
			t.Logf("  %v before: %#v", since, l.event)
		}
	}
}

func (r *relay) claimedAt(uuid string) time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.claimed[uuid]
}

// lateMarks is how long after an interruption its consequences may come: an outcome that could not be marked is tried again
// for up to five seconds at a time. One that says that an attempt has failed then puts back what was claimed anew meanwhile,
// since both claims have the same id, and so a message lands again.
const lateMarks = 6 * time.Second

// interrupted tells whether the relay was interrupted at some time in between, or not long before.
func (r *relay) interrupted(from, to time.Time) bool {
	return slices.ContainsFunc(r.interruptions, func(i interruption) bool {
		return i.from.Before(to) && (i.to.IsZero() || i.to.Add(lateMarks).After(from))
	})
}

// leave stops the relay gracefully.
func (r *relay) leave(t *testing.T) {
	t.Helper()
	r.stop()
	require.NoError(t, <-r.ended, "the relay has not stopped gracefully")
	r.pool.Close()
}

// crash ends the relay as SIGKILL would, or the loss of its machine: it does nothing more, and nothing is handed over.
func (r *relay) crash(w *world) {
	r.link.become(dead)
	r.isolate(w)
	w.bury(r)
}

// slowDown makes the relay publish slowly, so that it has much to do when it loses its database, soon after.
func (r *relay) slowDown(w *world) {
	r.link.become(slow)
	time.Sleep(tortureTTL)
	r.isolate(w)
}

// isolate cuts the relay off from the database.
func (r *relay) isolate(w *world) {
	r.mu.Lock()
	r.isolated = true
	r.interruptions = append(r.interruptions, interruption{from: time.Now()})
	r.mu.Unlock()
	r.network.cutOff()
	r.link.cut(time.Now())
	if w.random.IntN(2) == 0 {
		w.terminate(r)
	}
}

func (r *relay) rejoin() {
	r.link.cut(time.Time{})
	r.network.heal()
	r.link.become(up)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.isolated = false
	r.interruptions[len(r.interruptions)-1].to = time.Now()
}

// bury waits, in the background, for a relay that has lost its database, without Close: it can give nothing back.
func (w *world) bury(r *relay) {
	r.stop()
	w.buried.Go(func() {
		<-r.ended //nolint:errcheck // it could not tell anybody
		r.pool.Close()
	})
}

// terminate ends the relay's sessions.
func (w *world) terminate(r *relay) {
	const query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1"
	if _, err := w.pool.Exec(context.Background(), query, r.name); err != nil {
		w.fail(fmt.Errorf("terminate sessions: %w", err))
	}
}
