package storetest_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/store/memory"
	"github.com/watermill-outbox/outbox/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func memoryFeatures(slots int) storetest.Features {
	return storetest.Features{
		Slots: slots, Transactor: true, Notifier: true, TopicPauser: true, Leader: true, Inspector: true, StatsReporter: true,
		VirtualTime: true,
	}
}

func TestRun_OnTheMemoryStore(t *testing.T) {
	storetest.Run(t, memoryHarness(1), memoryFeatures(1))
}

func TestRun_OnTheMemoryStore_WithManySlots(t *testing.T) {
	storetest.Run(t, memoryHarness(8), memoryFeatures(8))
}

// The form of the suite for stores that have a real clock only.
func TestRun_OnTheMemoryStore_InRealTime(t *testing.T) {
	features := memoryFeatures(1)
	features.VirtualTime = false
	storetest.Run(t, memoryHarness(1), features)
}

// memoryHarness is what a harness looks like.
func memoryHarness(slots int) func(t *testing.T) storetest.Harness {
	return func(t *testing.T) storetest.Harness {
		t.Helper()
		const leaseTTL = 10 * time.Second
		db, err := memory.New(memory.WithSlots(slots), memory.WithLeaseTTL(leaseTTL))
		require.NoError(t, err)
		business := &businessTable{}
		return storetest.Harness{
			Open:    func(*testing.T) outbox.Store { return db.NewInstance() },
			Begin:   func(*testing.T, outbox.Store) storetest.Tx { return memoryTx{db.Begin()} },
			Write:   business.write,
			Written: business.written,
			ForeignTxs: map[string]any{
				"a store":                        db,
				"a transaction of another store": otherTx(t),
			},
			Processed: func(s outbox.Store) outbox.ProcessedStore { return s.(*memory.Store).Processed() },
			Expire:    func(*testing.T, outbox.Store) { db.Advance(leaseTTL + time.Millisecond) },
		}
	}
}

func otherTx(t *testing.T) *memory.Tx {
	t.Helper()
	other, err := memory.New()
	require.NoError(t, err)
	return other.Begin()
}

type memoryTx struct{ *memory.Tx }

func (t memoryTx) Handle() any { return t.Tx }

// businessTable is the table of a user.
type businessTable struct {
	mu   sync.Mutex
	rows []string
}

func (b *businessTable) write(_ context.Context, tx any, value string) error {
	t, ok := tx.(interface{ OnCommit(f func()) })
	if !ok {
		return fmt.Errorf("a %T is no transaction", tx)
	}
	t.OnCommit(func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.rows = append(b.rows, value)
	})
	return nil
}

func (b *businessTable) written(context.Context) ([]string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]string{}, b.rows...), nil
}
