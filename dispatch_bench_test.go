package outbox_test

import (
	"context"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/internal/abtest"
)

// endless is a LeasedStore without a database: it hands out n messages that exist already, over the given number of keys.
type endless struct {
	outbox.Store

	mu   sync.Mutex
	msgs []outbox.Message
	next int
}

func newEndless(n, keys int) *endless {
	s := &endless{msgs: make([]outbox.Message, n)}
	for i := range s.msgs {
		s.msgs[i] = outbox.Message{
			ID: strconv.Itoa(i), UUID: strconv.Itoa(i), Topic: "orders", Key: "order-" + strconv.Itoa(i%keys),
			Payload: make([]byte, 100),
		}
	}
	return s
}

func (s *endless) Claim(_ context.Context, limit, _ int) ([]outbox.Message, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := min(limit, len(s.msgs)-s.next)
	s.next += n
	return s.msgs[s.next-n : s.next], nil
}

func (s *endless) Settle(context.Context, ...outbox.Outcome) error { return nil }
func (s *endless) Release(context.Context, ...string) error        { return nil }
func (s *endless) Owned(string) bool                               { return true }

// What is required of the path from a claim to its mark, with a store and a broker that take no time.
const (
	dispatchTarget       = 1_000_000 // messages a second
	dispatchAllocsTarget = 0.1       // for a message, beyond Watermill's own; those for a batch are spread over its messages
)

func BenchmarkDispatch(b *testing.B) {
	const n = 1_000_000
	store := newEndless(n, 10_000)
	escaped := make(chan []*message.Message, 1)
	own := testing.AllocsPerRun(1000, func() {
		msg := message.NewMessage("1", nil)
		outbox.SetKey(msg, "order-1")
		msg.SetContext(b.Context())
		escaped <- []*message.Message{msg} // what Publish takes is a slice
		<-escaped
	})
	var before, after runtime.MemStats
	var took time.Duration
	allocs, total := uint64(0), 0
	for b.Loop() {
		store.next = 0
		f, err := outbox.NewForwarder(store, nopPublisher{}, outbox.WithLogger(watermill.NopLogger{}))
		require.NoError(b, err)
		runtime.ReadMemStats(&before)
		begun := time.Now()
		published, err := f.Drain(b.Context())
		took += time.Since(begun)
		runtime.ReadMemStats(&after)
		require.NoError(b, err)
		require.Equal(b, n, published)
		allocs += after.Mallocs - before.Mallocs
		total += n
	}
	rate, beyond := float64(total)/took.Seconds(), float64(allocs)/float64(total)-own
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(rate, "msgs/s")
	abtest.HoldTo(b, "msgs/s", dispatchTarget, rate >= dispatchTarget)
	b.ReportMetric(beyond, "allocs/msg")
	abtest.HoldTo(b, "allocs/msg", dispatchAllocsTarget, beyond <= dispatchAllocsTarget)
}
