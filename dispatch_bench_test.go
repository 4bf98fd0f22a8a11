package outbox_test

import (
	"context"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
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

func BenchmarkDispatch(b *testing.B) {
	const n = 1_000_000
	store := newEndless(n, 10_000)
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		store.next = 0
		f, err := outbox.NewForwarder(store, nopPublisher{}, outbox.WithLogger(watermill.NopLogger{}))
		require.NoError(b, err)
		b.StartTimer()
		begun := time.Now()
		published, err := f.Drain(b.Context())
		require.NoError(b, err)
		require.Equal(b, n, published)
		b.ReportMetric(float64(n)/time.Since(begun).Seconds(), "msgs/s")
	}
}
