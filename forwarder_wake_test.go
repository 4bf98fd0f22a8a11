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
