package outbox_test

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/store/memory"
)

// purgedStore counts how often old messages are deleted.
type purgedStore struct {
	*memory.Store
	purges atomic.Int64
}

func (s *purgedStore) DeleteProcessedBefore(ctx context.Context, t time.Time) (int64, error) {
	s.purges.Add(1)
	return s.Store.DeleteProcessedBefore(ctx, t)
}

// Invariant: of the instances that relay one deletes old messages, as often as it is to; and when that one stops, another
// goes on.
func TestForwarders_HaveOneOfThemDeleteOldMessages(t *testing.T) {
	const interval, hours = 10 * time.Minute, 5
	const times = int(hours * time.Hour / interval)
	synctest.Test(t, func(t *testing.T) {
		a := &purgedStore{Store: newMemory(t, memory.WithSlots(4))}
		b := &purgedStore{Store: a.NewInstance()}
		forwarders := map[*purgedStore]*outbox.Forwarder{}
		for _, s := range []*purgedStore{a, b} {
			forwarders[s] = run(t, s, newBroker(), outbox.WithRetention(time.Hour), outbox.WithCleanupInterval(interval))
		}
		time.Sleep(time.Minute) // until each has its share
		countAnew := func() {
			a.purges.Store(0)
			b.purges.Store(0)
			time.Sleep(hours * time.Hour)
		}
		countAnew()
		first, second := a, b
		if first.purges.Load() == 0 {
			first, second = b, a
		}
		require.InDelta(t, times, first.purges.Load(), 1)
		require.Zero(t, second.purges.Load(), "both delete old messages")

		require.NoError(t, forwarders[first].Close())
		countAnew()
		require.InDelta(t, times, second.purges.Load(), 1)
		require.Zero(t, first.purges.Load())
	})
}
