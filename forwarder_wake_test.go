package outbox_test

import (
	"context"
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/store/memory"
)

// slowClaims answers a claim with what there was when it began, a while later.
type slowClaims struct {
	*memory.Store
	slow atomic.Bool
}

func (s *slowClaims) Claim(ctx context.Context, limit, maxBytes int) ([]outbox.Message, error) {
	msgs, err := s.Store.Claim(ctx, limit, maxBytes)
	if s.slow.Load() {
		time.Sleep(10 * time.Second)
	}
	return msgs, err
}

func TestForwarder_IsWoken_ByACommitDuringAClaim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, b := &slowClaims{Store: newMemory(t)}, newBroker()
		f := run(t, store, b, outbox.WithPollInterval(time.Hour))
		time.Sleep(3 * time.Hour) // it is idle
		store.slow.Store(true)
		f.Wake()
		time.Sleep(5 * time.Second)
		publish(t, store, "topic", newMessage("x", ""))
		begun := time.Now()
		b.await(t, 1)
		require.Less(t, time.Since(begun), time.Minute)
	})
}

func TestForwarder_RetriesInTime_HoweverLongMarkingTakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const messages = 50
		store, b := &heldStore{Store: newMemory(t)}, newBroker()
		store.settle = func() error { time.Sleep(time.Second); return nil }
		attempts := map[string]int{}
		b.answer = func(_ string, msg *message.Message) error {
			b.mu.Lock()
			defer b.mu.Unlock()
			if attempts[msg.UUID]++; attempts[msg.UUID] == 1 {
				return errDown
			}
			return nil
		}
		for i := range messages {
			publish(t, store, strconv.Itoa(i), newMessage("x", "")) // one each is no outage
		}
		begun := time.Now()
		run(t, store, b, outbox.WithPollInterval(time.Hour))
		b.await(t, messages)
		require.Less(t, time.Since(begun), 5*time.Second, "two marks and a wait, on the fake clock")
	})
}

// countedClaims counts claims.
type countedClaims struct {
	*memory.Store
	n atomic.Int64
}

func (s *countedClaims) Claim(ctx context.Context, limit, maxBytes int) ([]outbox.Message, error) {
	s.n.Add(1)
	return s.Store.Claim(ctx, limit, maxBytes)
}

// Notify tells of nothing.
func (s *countedClaims) Notify(ctx context.Context, _ func()) error {
	<-ctx.Done()
	return ctx.Err()
}

// Each look costs the same, whether it finds anything or not.
func TestForwarder_LooksMoreOften_TheMoreOftenMessagesCome(t *testing.T) {
	for name, c := range map[string]struct {
		gap          time.Duration
		messages     int
		pollInterval time.Duration
		least, most  int // looks in a second
	}{
		"at 1,000/s":          {time.Millisecond, 1, time.Second, 400, 600},
		"at 200/s":            {5 * time.Millisecond, 1, time.Second, 400, 600},
		"at 50/s":             {20 * time.Millisecond, 1, time.Second, 200, 300},
		"at 10/s":             {100 * time.Millisecond, 1, time.Second, 100, 150},
		"at 100/s, by tens":   {100 * time.Millisecond, 10, time.Second, 100, 150},
		"as often as if idle": {100 * time.Millisecond, 1, 2 * time.Millisecond, 400, 600},
		"once in 2 seconds":   {2 * time.Second, 1, 10 * time.Second, 5, 40},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store, b := &countedClaims{Store: newMemory(t)}, newBroker()
				run(t, store, b, outbox.WithPollInterval(c.pollInterval))
				const seconds = 20
				for range seconds * int(time.Second) / int(c.gap) {
					for range c.messages {
						publish(t, store, "topic", newMessage("x", ""))
					}
					time.Sleep(c.gap)
				}
				perSecond := int(store.n.Load()) / seconds
				require.GreaterOrEqual(t, perSecond, c.least)
				require.LessOrEqual(t, perSecond, c.most)
			})
		})
	}
}
