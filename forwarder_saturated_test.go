package outbox_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/store/memory"
)

// pacedStore takes its time, and notes the longest between two Claims.
type pacedStore struct {
	*memory.Store
	last time.Time
	gap  time.Duration
}

func (s *pacedStore) Claim(ctx context.Context, limit, maxBytes int) ([]outbox.Message, error) {
	if !s.last.IsZero() {
		s.gap = max(s.gap, time.Since(s.last))
	}
	s.last = time.Now()
	time.Sleep(3 * time.Millisecond)
	return s.Store.Claim(ctx, limit, maxBytes)
}

func (s *pacedStore) Settle(ctx context.Context, outcomes ...outbox.Outcome) error {
	time.Sleep(5 * time.Millisecond)
	return s.Store.Settle(ctx, outcomes...)
}

// drainPaced drains n messages that each take the broker a while, and returns how long that took.
func drainPaced(t *testing.T, s *pacedStore, n int, each time.Duration, opts ...outbox.Option) time.Duration {
	t.Helper()
	tx := s.Begin()
	for range n {
		require.NoError(t, s.Publisher(tx).Publish("topic", message.NewMessage(watermill.NewUUID(), nil)))
	}
	require.NoError(t, tx.Commit())
	b := newBroker()
	b.answer = func(string, *message.Message) error { time.Sleep(each); return nil }
	f, err := outbox.NewForwarder(s, b, append(opts, outbox.WithLogger(watermill.NopLogger{}))...)
	require.NoError(t, err)
	begun := time.Now()
	published, err := f.Drain(t.Context())
	require.NoError(t, err)
	require.Equal(t, n, published)
	return time.Since(begun)
}

// A Claim is also how a store shares its slots with instances that come and go, whatever is ready here.
func TestForwarder_ClaimsAgainWithinASecond_HoweverSlowTheBroker(t *testing.T) {
	for _, c := range []struct {
		concurrency int
		each        time.Duration
	}{{8, 50 * time.Millisecond}, {16, 20 * time.Millisecond}, {256, time.Second}} {
		synctest.Test(t, func(t *testing.T) {
			s := &pacedStore{Store: newMemory(t)}
			drainPaced(t, s, 10_000, c.each, outbox.WithConcurrency(c.concurrency))
			require.LessOrEqual(t, s.gap, 1100*time.Millisecond, "%+v", c)
		})
	}
}

// What waits to be marked must not fill a small window while workers have nothing to do.
func TestForwarder_KeepsItsWorkersBusy_InASmallWindow(t *testing.T) {
	for _, c := range []struct{ concurrency, window int }{{64, 500}, {8, 100}, {256, 10_000}} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const n, each = 20_000, 2 * time.Millisecond
				took := drainPaced(t, &pacedStore{Store: newMemory(t)}, n, each,
					outbox.WithConcurrency(c.concurrency), outbox.WithMaxInFlight(c.window))
				ideal := n / time.Duration(c.concurrency) * each
				require.Less(t, took, ideal+ideal/20+50*time.Millisecond, "with all workers busy it is %v", ideal)
			})
		})
	}
}
