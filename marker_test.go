package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/store/memory"
)

// lockedStore cannot settle some messages, as where somebody has locked their rows, and none together with them.
type lockedStore struct {
	*memory.Store
	locked []string // ids of rows
	free   atomic.Bool
	hangs  bool // instead of failing at once
}

func (s *lockedStore) Settle(ctx context.Context, outcomes ...outbox.Outcome) error {
	for _, o := range outcomes {
		if slices.Contains(s.locked, o.ID) && !s.free.Load() {
			if s.hangs {
				<-ctx.Done()
			}
			return errors.New("somebody has locked the row")
		}
	}
	return s.Store.Settle(ctx, outcomes...)
}

// Invariant: whatever messages cannot be marked, all others are published and marked, and those are marked when they can be.
func TestForwarder_GoesOn_WhenSomeMessagesCannotBeMarked(t *testing.T) {
	for name, locked := range map[string][]string{
		"the first":              {"1"},
		"the first of two keys":  {"1", "2"},
		"ten in the middle":      {"400", "401", "402", "403", "404", "405", "406", "407", "408", "409"},
		"the last":               {"1000"},
		"forty, here and there":  everyNth(25),
		"one, after which a few": {"998"},
	} {
		for _, hangs := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/hangs=%t", name, hangs), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					const n = 1000
					store, b := &lockedStore{Store: newMemory(t), locked: locked, hangs: hangs}, newBroker()
					for i := range n {
						publish(t, store, "topic", newMessage(fmt.Sprint(i+1), fmt.Sprint("key-", i%100)))
					}
					run(t, store, b, outbox.WithMaxInFlight(300), outbox.WithBatchSize(100))
					time.Sleep(30 * time.Minute)
					for _, m := range pendingOf(t, store.Store) {
						require.Contains(t, keysOf(locked), m.Key, "only their keys wait")
					}
					store.free.Store(true)
					time.Sleep(10 * time.Minute)
					require.Empty(t, pendingOf(t, store.Store))
					require.Len(t, b.payloads(), n, "each once")
				})
			})
		}
	}
}

func everyNth(n int) (ids []string) {
	for i := n; i <= 1000; i += n {
		ids = append(ids, fmt.Sprint(i))
	}
	return ids
}

func keysOf(ids []string) (keys []string) {
	for _, id := range ids {
		var n int
		_, _ = fmt.Sscan(id, &n)
		keys = append(keys, fmt.Sprint("key-", (n-1)%100))
	}
	return keys
}

// Nothing can be marked, as where a privilege was revoked: no more is published than the window holds.
func TestForwarder_PublishesNoMoreThanItsWindow_WhileNothingCanBeMarked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n, window = 1000, 50
		store, b := &lockedStore{Store: newMemory(t), locked: everyNth(1)}, newBroker()
		for i := range n {
			publish(t, store, "topic", newMessage(fmt.Sprint(i+1), ""))
		}
		run(t, store, b, outbox.WithMaxInFlight(window))
		time.Sleep(time.Hour)
		require.Len(t, b.payloads(), window)
		store.free.Store(true)
		time.Sleep(time.Hour)
		require.Len(t, b.payloads(), n, "each once")
		require.Empty(t, pendingOf(t, store.Store))
	})
}
