package outbox_test

import (
	"context"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
)

// observedStore counts what is asked of a store.
type observedStore struct {
	outbox.LeasedStore
	outbox.TopicPauser

	claims, settles  atomic.Int64
	blocked, healthy atomic.Int64 // messages that were claimed
}

func observe(store outbox.LeasedStore) *observedStore {
	return &observedStore{LeasedStore: store, TopicPauser: store.(outbox.TopicPauser)}
}

func (s *observedStore) Claim(ctx context.Context, limit, maxBytes int) ([]outbox.Message, error) {
	msgs, err := s.LeasedStore.Claim(ctx, limit, maxBytes)
	s.claims.Add(1)
	for i := range msgs {
		if msgs[i].Key == "blocked" {
			s.blocked.Add(1)
		} else {
			s.healthy.Add(1)
		}
	}
	return msgs, err
}

func (s *observedStore) Settle(ctx context.Context, outcomes ...outbox.Outcome) error {
	s.settles.Add(1)
	return s.LeasedStore.Settle(ctx, outcomes...)
}

// saveBlocked saves a key's backlog, of which the first message is to be blocked.
func saveBlocked(t testing.TB, store outbox.Store, backlog int) {
	t.Helper()
	msgs := slices.Repeat([]outbox.Message{{Topic: "topic", Key: "blocked", Payload: []byte("behind")}}, backlog)
	msgs[0].Payload = []byte("blocked")
	require.NoError(t, store.Save(t.Context(), nil, msgs...))
}

const healthyKeys, healthyPerKey = 1000, 5

func saveHealthy(t testing.TB, store outbox.Store) {
	t.Helper()
	var msgs []outbox.Message
	for i := range healthyKeys * healthyPerKey {
		msgs = append(msgs, outbox.Message{Topic: "topic", Key: "key-" + strconv.Itoa(i%healthyKeys), Payload: []byte("x")})
	}
	require.NoError(t, store.Save(t.Context(), nil, msgs...))
}

// waysToBlock are what becomes of the first message of a key.
var waysToBlock = map[string]func(end <-chan struct{}) error{
	"fails": func(<-chan struct{}) error { return errDown },
	"hangs": func(end <-chan struct{}) error { <-end; return errDown },
}

// blockedBroker is one at which a key is blocked until end; the first attempt is announced.
func blockedBroker(block func(end <-chan struct{}) error, end <-chan struct{}) (b *broker, attempts *atomic.Int64, first <-chan struct{}) {
	b, attempts = newBroker(), &atomic.Int64{}
	begun := make(chan struct{})
	b.answer = func(_ string, msg *message.Message) error {
		if string(msg.Payload) != "blocked" {
			return nil
		}
		if attempts.Add(1) == 1 {
			close(begun)
		}
		return block(end)
	}
	return b, attempts, begun
}

var blockedOptions = []outbox.Option{
	outbox.WithMaxRetries(1_000_000), outbox.WithRetryBackoff(time.Millisecond, 10*time.Millisecond),
	outbox.WithPublishTimeout(500 * time.Millisecond),
}

// A key with a large backlog whose first message fails or hangs for ever: the others are claimed once each and arrive, and
// what is claimed of the key is a run for each attempt.
func TestForwarder_AKeyThatIsBlockedWithALargeBacklogStopsNobodyElse(t *testing.T) {
	const run64 = 64 // the most that a store gives out of one key at a time
	backlog := 100_000
	if testing.Short() {
		backlog = 5000
	}
	for name, block := range waysToBlock {
		t.Run(name, func(t *testing.T) {
			forEachStore(t, func(t *testing.T, inner outbox.LeasedStore) {
				store, end := observe(inner), make(chan struct{})
				b, attempts, first := blockedBroker(block, end)
				saveBlocked(t, store, backlog)
				run(t, store, b, blockedOptions...)
				t.Cleanup(func() { close(end) }) // before the run ends
				<-first
				saveHealthy(t, store)
				b.await(t, healthyKeys*healthyPerKey)
				require.NotContains(t, b.payloads(), "behind")
				require.EqualValues(t, healthyKeys*healthyPerKey, store.healthy.Load(), "each once")
				require.LessOrEqual(t, store.blocked.Load(), (attempts.Load()+1)*run64)
			})
		})
	}
}

// The same on a clock that tells nothing but who waits for whom.
func TestForwarder_AKeyThatIsBlockedCostsOthersNoTimeAndFewCalls(t *testing.T) {
	type cost struct {
		took            time.Duration
		claims, settles int64
	}
	measure := func(t *testing.T, block func(end <-chan struct{}) error) (c cost) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			store, end := observe(newMemory(t)), make(chan struct{})
			b, _, first := blockedBroker(block, end)
			if block != nil {
				saveBlocked(t, store, 5000)
			}
			run(t, store, b, blockedOptions...)
			t.Cleanup(func() { close(end) })
			if block != nil {
				<-first
			}
			claims, settles, begun := store.claims.Load(), store.settles.Load(), time.Now()
			saveHealthy(t, store)
			b.await(t, healthyKeys*healthyPerKey)
			c = cost{time.Since(begun), store.claims.Load() - claims, store.settles.Load() - settles}
		})
		return c
	}
	without := measure(t, nil)
	for name, block := range waysToBlock {
		with := measure(t, block)
		t.Logf("without %+v, with a key that %s %+v", without, name, with)
		require.LessOrEqual(t, with.took, 2*without.took+20*time.Millisecond, name)
		require.LessOrEqual(t, with.claims, 3*without.claims+20, name)
		require.LessOrEqual(t, with.settles, 3*without.settles+20, name)
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
		var at, most, came atomic.Int64
		two := make(chan struct{})
		b.answer = func(_ string, msg *message.Message) error {
			now := at.Add(int64(len(msg.Payload)))
			for m := most.Load(); now > m && !most.CompareAndSwap(m, now); m = most.Load() {
			}
			if came.Add(1) == 2 {
				close(two)
			}
			<-two                            // as many as fit go together
			time.Sleep(5 * time.Millisecond) // so that more would be seen
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
	})
}
