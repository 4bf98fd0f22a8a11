package outbox_test

import (
	"context"
	"math"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
)

// side is an outbox with or without a key that is blocked.
type side struct {
	store   outbox.LeasedStore
	b       *broker
	blocked atomic.Bool // the first message of the key is at the broker, for ever
}

// measured is what a round has taken: to publish messages of a thousand keys, and one alone.
type measured struct{ all, one time.Duration }

// measure runs a Forwarder for a round. block is what the broker does with the blocked message, nil where there is none.
func (s *side) measure(t *testing.T, block func(end <-chan struct{}) error) measured {
	t.Helper()
	const keys, perKey, alone = 1000, 5, 30
	end := make(chan struct{})
	s.blocked.Store(false)
	s.b.answer = func(_ string, msg *message.Message) error {
		if string(msg.Payload) != "blocked" {
			return nil
		}
		s.blocked.Store(true)
		return block(end)
	}
	f, err := outbox.NewForwarder(s.store, s.b, outbox.WithLogger(watermill.NopLogger{}), outbox.WithMaxRetries(1_000_000),
		outbox.WithRetryBackoff(time.Millisecond, 10*time.Millisecond), outbox.WithPublishTimeout(500*time.Millisecond)) // a busy machine must not make an outage
	require.NoError(t, err)
	ended := make(chan error, 1)
	go func() { ended <- f.Run(context.Background()) }()
	publish(t, s.store, "topic", newMessage("warm", ""))
	s.b.await(t, 1)
	require.Eventually(t, func() bool { return block == nil || s.blocked.Load() }, 30*time.Second, time.Millisecond)

	var m measured
	var msgs []outbox.Message
	for i := range keys * perKey {
		msgs = append(msgs, outbox.Message{Topic: "topic", Key: "key-" + strconv.Itoa(i%keys), Payload: []byte("x")})
	}
	begun := time.Now()
	require.NoError(t, s.store.Save(t.Context(), nil, msgs...))
	s.b.await(t, keys*perKey)
	m.all = time.Since(begun)

	var each []time.Duration
	for i := range alone {
		msg := newMessage("y", "alone-"+strconv.Itoa(i))
		begun := time.Now()
		publish(t, s.store, "topic", msg)
		s.b.await(t, 1)
		each = append(each, time.Since(begun))
	}
	slices.Sort(each)
	m.one = each[alone/2]
	close(end)
	require.NoError(t, f.Close())
	require.NoError(t, <-ended)
	return m
}

// A key with a large backlog whose first message fails or hangs for ever leaves the others their throughput and latency.
// Rounds with and without it take turns, and the best of each are compared: the machine may be busy with other things.
func TestForwarder_AKeyThatIsBlockedWithALargeBacklogStopsNobodyElse(t *testing.T) {
	backlog, rounds := 100_000, 3
	if testing.Short() {
		backlog, rounds = 5000, 2
	}
	for name, block := range map[string]func(end <-chan struct{}) error{
		"fails": func(<-chan struct{}) error { return errDown },
		"hangs": func(end <-chan struct{}) error { <-end; return errDown },
	} {
		for db, newStore := range map[string]func(t *testing.T) outbox.LeasedStore{
			"memory": func(t *testing.T) outbox.LeasedStore { return newMemory(t) },
			"sqlite": func(t *testing.T) outbox.LeasedStore { store, _ := newSQLite(t); return store },
		} {
			t.Run(name+"/"+db, func(t *testing.T) {
				free, blocked := &side{store: newStore(t), b: newBroker()}, &side{store: newStore(t), b: newBroker()}
				msgs := slices.Repeat([]outbox.Message{{Topic: "topic", Key: "blocked", Payload: []byte("behind")}}, backlog)
				msgs[0].Payload = []byte("blocked")
				require.NoError(t, blocked.store.Save(t.Context(), nil, msgs...))
				best := func(of, m measured) measured { return measured{min(of.all, m.all), min(of.one, m.one)} }
				without, with := measured{math.MaxInt64, math.MaxInt64}, measured{math.MaxInt64, math.MaxInt64}
				for range rounds {
					without = best(without, free.measure(t, nil))
					with = best(with, blocked.measure(t, block))
				}
				t.Logf("without the key %v, and %v for one; with it %v and %v", without.all, without.one, with.all, with.one)
				require.NotContains(t, blocked.b.payloads(), "behind")
				require.Less(t, with.all, 4*without.all, "throughput; what is measured lasts tens of milliseconds")
				require.Less(t, with.one, 4*without.one, "latency")
			})
		}
	}
}

func TestForwarder_KeepsTheOrderOfEachKey_WhenEveryThirdPublishFails(t *testing.T) {
	forEachStore(t, func(t *testing.T, store outbox.LeasedStore) {
		const keys, perKey = 20, 15
		b, calls := newBroker(), atomic.Int64{}
		b.answer = func(string, *message.Message) error {
			if calls.Add(1)%3 == 0 {
				return errDown
			}
			return nil
		}
		for i := range perKey {
			for k := range keys {
				publish(t, store, "topic", newMessage(strconv.Itoa(i), "key-"+strconv.Itoa(k)))
			}
		}
		run(t, store, b, outbox.WithRetryBackoff(time.Millisecond, 2*time.Millisecond), outbox.WithMaxRetries(1000))
		b.await(t, keys*perKey)
		requireAscending(t, b, keys, perKey)
		require.Empty(t, failed(t, store.(outbox.Inspector)), "none of them is at fault")
	})
}

// requireAscending wants each key to have published 0, 1, 2, ..., each of them once.
func requireAscending(t *testing.T, b *broker, keys, perKey int) {
	t.Helper()
	next := map[string]int{}
	for _, msg := range b.published {
		key := outbox.Key(msg)
		require.Equal(t, strconv.Itoa(next[key]), string(msg.Payload), key)
		next[key]++
	}
	require.Len(t, next, keys)
	for key, n := range next {
		require.Equal(t, perKey, n, key)
	}
}

func TestForwarder_TotalOrder_HoldsThroughFailures(t *testing.T) {
	forEachStore(t, func(t *testing.T, store outbox.LeasedStore) {
		const n = 100
		pub, err := outbox.NewPublisher(store, outbox.WithOwnTx(), outbox.WithTotalOrder())
		require.NoError(t, err)
		b, calls := newBroker(), atomic.Int64{}
		b.answer = func(string, *message.Message) error {
			if calls.Add(1)%5 == 0 {
				return errDown
			}
			return nil
		}
		run(t, store, b, outbox.WithRetryBackoff(time.Millisecond, 2*time.Millisecond), outbox.WithMaxRetries(1000))
		for i := range n {
			require.NoError(t, pub.Publish("topic-"+strconv.Itoa(i%3), message.NewMessage("", []byte(strconv.Itoa(i)))))
		}
		b.await(t, n)
		requireAscending(t, b, 1, n)
	})
}

// Payloads of 10 MB against a budget of 32: all arrive, and the broker never has more of them at once than fit, and one
// that was begun with less than its size left.
func TestForwarder_KeepsLargePayloadsWithinItsBudget(t *testing.T) {
	const size, budget, n = 10 << 20, 32 << 20, 10
	forEachStore(t, func(t *testing.T, store outbox.LeasedStore) {
		b := newBroker()
		var at, most atomic.Int64
		b.answer = func(_ string, msg *message.Message) error {
			now := at.Add(int64(len(msg.Payload)))
			for m := most.Load(); now > m && !most.CompareAndSwap(m, now); m = most.Load() {
			}
			time.Sleep(5 * time.Millisecond) // so that as many as may come together do
			at.Add(-int64(len(msg.Payload)))
			return nil
		}
		payload := string(make([]byte, size))
		for i := range n {
			publish(t, store, "topic", newMessage(payload, "key-"+strconv.Itoa(i)))
		}
		run(t, store, b, outbox.WithMaxInFlightBytes(budget))
		b.await(t, n)
		require.LessOrEqual(t, most.Load(), int64(budget+size))
		require.GreaterOrEqual(t, most.Load(), int64(2*size), "as many as fit go together")
	})
}
