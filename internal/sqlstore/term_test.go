package sqlstore

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox/internal/claim"
)

// Whoever asks while a lease is lost must not hear of the earlier term together with an end of the later one: it would go
// on with what it has claimed under the lost lease.
func TestLeaseTerm_NeverTellsTheEndOfALaterTerm(t *testing.T) {
	t.Parallel()
	const terms = 200_000
	e := &Engine{begun: time.Now(), leases: map[int]time.Time{}, queue: claim.New(1, 1, 1)}
	end := func(term int64) time.Time { return e.begun.Add(time.Duration(term) * time.Hour / terms) } // no two terms end together
	done := make(chan struct{})
	go func() {
		defer close(done)
		for term := int64(1); term <= terms; term++ {
			e.mu.Lock()
			e.leases[0] = time.Time{} // somebody else has it
			e.leasesChanged()
			e.leases[1] = end(term)
			e.drop(0)
			e.mu.Unlock()
		}
	}()
	for more := true; more; {
		select {
		case <-done:
			more = false
		default:
		}
		term, ends := e.LeaseTerm()
		require.False(t, ends.After(end(term)), "term %d is said to end when a later one does", term)
	}
}
