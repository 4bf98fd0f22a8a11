package pgxstore_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/internal/abtest"
	"github.com/watermill-outbox/outbox/store/pgxstore"
)

// Target: 0.9. Two instances read twice what one reads, and share the same two cores with the server.
func BenchmarkInstances_TwoAgainstOne(b *testing.B) {
	const n = 200_000
	two, one := newFleet(b, 2), newFleet(b, 1)
	abtest.Compare(b, n, 0.9, func(b *testing.B) time.Duration {
		return two.relayBacklog(b, n)
	}, func(b *testing.B) time.Duration {
		return one.relayBacklog(b, n)
	})
}

// fleet is relays that share an outbox, each over a pool of its own.
type fleet struct {
	*side
	forwarders []*outbox.Forwarder
	settled    chan settled
}

// settled is how many messages an instance has marked.
type settled struct{ instance, n int }

// tallied is a store that tells what has been marked.
type tallied struct {
	*pgxstore.Store
	instance int
	settled  chan<- settled
}

func (t *tallied) Settle(ctx context.Context, outcomes ...outbox.Outcome) error {
	err := t.Store.Settle(ctx, outcomes...)
	if err == nil {
		t.settled <- settled{t.instance, len(outcomes)}
	}
	return err
}

// newFleet starts instances, and waits until each has its share of the slots.
func newFleet(b *testing.B, instances int) *fleet {
	b.Helper()
	f := &fleet{side: newSide(b), settled: make(chan settled, instances)}
	for i := range instances {
		store, err := pgxstore.New(ways["15"].open(b), pgxstore.WithSchema(f.schema))
		require.NoError(b, err)
		b.Cleanup(func() { require.NoError(b, store.Close()) })
		forwarder, stop := f.relay(b, &tallied{store, i, f.settled}, nopPublisher{})
		b.Cleanup(stop)
		f.forwarders = append(f.forwarders, forwarder)
	}
	shares := `SELECT count(*) FROM (
		SELECT FROM ` + f.schema + `.outbox_slots WHERE owner <> '' GROUP BY owner HAVING count(*) = $1) sharing`
	require.Eventually(b, func() bool {
		sharing, err := column[int](b.Context(), f.pool, shares, 64/instances)
		return err == nil && sharing[0] == instances
	}, time.Minute, 50*time.Millisecond, "the slots are not shared")
	return f
}

// relayBacklog commits a backlog of n messages, wakes all instances, and returns how long it takes them until all is marked.
func (f *fleet) relayBacklog(b *testing.B, n int) time.Duration {
	b.Helper()
	f.fill(b, n)
	begun := time.Now()
	for _, forwarder := range f.forwarders {
		forwarder.Wake()
	}
	marked, watchdog := make([]int, len(f.forwarders)), time.After(time.Minute)
	for left := n; left > 0; {
		select {
		case s := <-f.settled:
			marked[s.instance] += s.n
			left -= s.n
		case <-watchdog:
			b.Fatalf("%d of %d messages have not been marked for a minute", left, n)
		}
	}
	took := time.Since(begun)
	for i, share := range marked {
		require.Greater(b, share, n/len(marked)/2, "instance %d has not done its share", i)
	}
	return took
}
