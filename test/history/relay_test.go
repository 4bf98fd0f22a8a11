package history_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/internal/pgtest"
	"github.com/watermill-outbox/outbox/store/pgxstore"
	"github.com/watermill-outbox/outbox/test/history"
)

// relay is a relay instance with its ways to the database and to the broker: a process, as far as those can tell. It is a
// message.Publisher itself, the one that its Forwarder publishes with.
type relay struct {
	broker   *broker
	recorder *history.Recorder
	pool     *pgxpool.Pool
	stop     context.CancelFunc
	ended    chan error // of one

	mu     sync.Mutex
	random *rand.Rand
	dead   bool                  // it does not reach the broker any more
	slow   bool                  // the broker takes its time
	cut    bool                  // it does not reach the database
	conns  map[net.Conn]struct{} // to the database
}

var errCut = errors.New("the network is cut")

func (s *system) startRelay(t *testing.T, seed uint64) *relay {
	t.Helper()
	s.relays++
	r := &relay{
		broker: s.broker, recorder: s.record(t, fmt.Sprintf("relay-%d", s.relays)), ended: make(chan error, 1),
		random: rand.New(rand.NewPCG(seed, uint64(s.relays))), conns: map[net.Conn]struct{}{},
	}
	config, err := pgxpool.ParseConfig(pgtest.V15.URL())
	require.NoError(t, err)
	config.MaxConns = 4
	config.ConnConfig.DialFunc = r.dial
	config.ConnConfig.RuntimeParams["search_path"] = s.schema
	r.pool, err = pgxpool.NewWithConfig(t.Context(), config)
	require.NoError(t, err)
	store, err := pgxstore.New(r.pool, pgxstore.WithSchema(s.schema), pgxstore.WithLeaseTTL(ttl))
	require.NoError(t, err)
	var of outbox.Store = store
	if s.variant.store != nil {
		of = s.variant.store(s, store)
	}
	forwarder, err := outbox.NewForwarder(of, r, outbox.WithConcurrency(concurrency), outbox.WithMaxInFlight(200),
		outbox.WithBatchSize(50), outbox.WithMaxRetries(1000), outbox.WithRetryBackoff(5*time.Millisecond, 50*time.Millisecond),
		outbox.WithPollInterval(20*time.Millisecond), outbox.WithCloseTimeout(10*ttl), outbox.WithLogger(watermill.NopLogger{}),
		outbox.WithObserver(outbox.ObserverFunc(r.recorder.Observe)))
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	r.stop = cancel
	go func() { r.ended <- errors.Join(forwarder.Run(ctx), store.Close()) }() // ends with stop
	return r
}

// Publish takes up to a millisecond, or so long that the window outlasts the lease. Now and then the broker refuses, or its answer is lost.
func (r *relay) Publish(topic string, msgs ...*message.Message) error {
	r.mu.Lock()
	fate, longest := r.random.IntN(100), time.Millisecond
	if r.slow {
		longest = ttl / 2
	}
	wait := time.Duration(r.random.Int64N(int64(longest)))
	r.mu.Unlock()
	for _, msg := range msgs {
		of := []history.Message{{ID: msg.UUID, Key: history.KeyOf(topic, msg)}}
		r.recorder.Add(history.Event{Kind: history.Attempt, Messages: of})
		time.Sleep(wait)
		if fate == 0 {
			return errors.New("the broker has refused")
		}
		if !r.land(topic, msg) {
			return errCrash
		}
		if fate == 1 {
			return errors.New("the broker's answer was lost")
		}
		r.recorder.Add(history.Event{Kind: history.Acked, Messages: of})
	}
	return nil
}

func (r *relay) land(topic string, msg *message.Message) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.dead {
		r.broker.land(topic, msg)
	}
	return !r.dead
}

func (r *relay) Close() error { return nil }

func (r *relay) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cut {
		return nil, errors.Join(errCut, conn.Close())
	}
	r.conns[conn] = struct{}{}
	return conn, nil
}

// isolate cuts the relay off from the database.
func (r *relay) isolate() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cut, r.slow = true, true
	for conn := range r.conns {
		_ = conn.Close() // its owner notices
	}
	clear(r.conns)
}

func (r *relay) rejoin() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cut, r.slow = false, false
}

// crash ends the relay as SIGKILL would: nothing of what it does from now on has an effect.
func (s *system) crash(r *relay) {
	r.mu.Lock()
	r.dead = true
	r.mu.Unlock()
	r.isolate()
	r.stop()
	s.crashed.Go(func() {
		<-r.ended //nolint:errcheck // it has lost everything
		r.pool.Close()
	})
}

func (r *relay) leave(t *testing.T) {
	t.Helper()
	r.stop()
	require.NoError(t, <-r.ended)
	r.pool.Close()
}

// disturb cuts one of two relays off for a while, and kills it, twice. It returns those that are alive.
func (s *system) disturb(t *testing.T, random *rand.Rand) []*relay {
	t.Helper()
	steady, other := s.startRelay(t, random.Uint64()), s.startRelay(t, random.Uint64())
	for range 2 {
		wait(2*ttl, random) // they share the slots
		other.slowDown()
		wait(2*ttl, random)
		other.isolate()
		time.Sleep(4 * ttl) // others look for free slots ten times a second
		other.rejoin()
		wait(2*ttl, random)
		s.crash(other)
		wait(ttl, random)
		other = s.startRelay(t, random.Uint64())
	}
	return []*relay{steady, other}
}

// wait lets a random time between the half and the whole of longest pass.
func wait(longest time.Duration, random *rand.Rand) {
	time.Sleep(longest/2 + time.Duration(random.Int64N(int64(longest/2))))
}

// slowDown has the window fill.
func (r *relay) slowDown() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.slow = true
}
