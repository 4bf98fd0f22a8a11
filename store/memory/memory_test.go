package memory_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/store/memory"
)

// The contract of stores is tested by package storetest, on this store first of all.

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestNew_ChecksOptions(t *testing.T) {
	for want, opt := range map[string]memory.Option{
		"the number of slots is 0, must be from 1 to 64":  memory.WithSlots(0),
		"the number of slots is 65, must be from 1 to 64": memory.WithSlots(65),
		"LeaseTTL is 1ms, must be from 10ms to 1h":        memory.WithLeaseTTL(time.Millisecond),
	} {
		_, err := memory.New(opt)
		require.ErrorContains(t, err, want)
	}
}

func TestAdvance_MovesTheClock(t *testing.T) {
	store, err := memory.New()
	require.NoError(t, err)
	defer func() { require.NoError(t, store.Close()) }()
	tomorrow := store.Now().Add(24 * time.Hour)
	require.NoError(t, store.Save(t.Context(), nil, outbox.Message{Topic: "t", AvailableAt: tomorrow}))
	msgs, err := store.FetchPending(t.Context(), 1)
	require.NoError(t, err)
	require.Empty(t, msgs)
	store.Advance(25 * time.Hour)
	msgs, err = store.FetchPending(t.Context(), 1)
	require.NoError(t, err)
	require.Len(t, msgs, 1)
}

func TestTx_OnCommit_RunsWithACommitOnly(t *testing.T) {
	store, err := memory.New()
	require.NoError(t, err)
	ran := 0
	write := func(_ context.Context, tx *memory.Tx) error {
		tx.OnCommit(func() { ran++ })
		return nil
	}
	require.NoError(t, store.InTx(t.Context(), write))
	require.Equal(t, 1, ran)
	no := errors.New("no")
	require.ErrorIs(t, store.InTx(t.Context(), func(ctx context.Context, tx *memory.Tx) error {
		return errors.Join(write(ctx, tx), no)
	}), no)
	require.Equal(t, 1, ran)
}

func TestInstances_ShareTheSlotsFairly(t *testing.T) {
	one, err := memory.New(memory.WithSlots(8))
	require.NoError(t, err)
	two := one.NewInstance()
	slots := map[*memory.Store]map[int]bool{one: {}, two: {}}
	watch := func(s *memory.Store) context.Context {
		return outbox.ContextWithObserver(t.Context(), outbox.ObserverFunc(func(_ context.Context, e outbox.Event) {
			switch e := e.(type) {
			case outbox.LeaseGainedEvent:
				for _, slot := range e.Slots {
					slots[s][slot] = true
				}
			case outbox.LeaseLostEvent:
				for _, slot := range e.Slots {
					delete(slots[s], slot)
				}
			}
		}))
	}
	for _, s := range []*memory.Store{one, two, one, two} {
		_, err := s.Claim(watch(s), 1, 1)
		if !errors.Is(err, outbox.ErrNoLease) {
			require.NoError(t, err)
		}
	}
	require.Len(t, slots[one], 4)
	require.Len(t, slots[two], 4)
	require.NoError(t, two.Close())
	_, err = one.Claim(watch(one), 1, 1)
	require.NoError(t, err)
	require.Len(t, slots[one], 8)
	require.NoError(t, one.Close())
}
