package pgxstore_test

import (
	"context"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/internal/pgtest"
	"github.com/watermill-outbox/outbox/store/pgxstore"
)

// An instance that leaves gives its slots up at once, and whoever stays, or joins, is not to wait for a share until the
// leases would have to be renewed: their messages wait with it.
func TestForwarders_MoveSlotsSoon_WhenOneJoinsAndOneLeaves(t *testing.T) {
	t.Parallel()
	const all, ttl, patience = 64, time.Minute, 15 * time.Second // a third of the TTL is longer than the patience
	schema, pool := pgtest.Schema(t, pgtest.V15), ways["15"].open(t)
	first := startSharer(t, pool, schema, ttl, nopPublisher{})
	first.awaitSlots(t, all, all, patience)
	second := startSharer(t, pool, schema, ttl, nopPublisher{})
	second.awaitSlots(t, all/2, all/2, patience)
	first.awaitSlots(t, all/2, all/2, patience)
	require.NoError(t, first.Close())
	second.awaitSlots(t, all, all, patience)
	third := startSharer(t, pool, schema, ttl, nopPublisher{})
	third.awaitSlots(t, all/2, all/2, patience)
	require.NoError(t, second.Close())
	third.awaitSlots(t, all, all, patience)
	require.NoError(t, third.Close())
}

// Invariant: a Publish call that hangs holds up its key, and no other. While one is under way in a slot that is to move, and
// does not return, the other keys of the slot go on, here or there.
func TestForwarders_PublishTheOtherKeysOfASlot_WhenItIsToMoveAndACallHangsInIt(t *testing.T) {
	t.Parallel()
	schema, pool := pgtest.Schema(t, pgtest.V15), ways["15"].open(t)
	keys, err := column[string](t.Context(), pool, `
		SELECT key FROM (SELECT 'key-' || i AS key FROM generate_series(1, 5000) i) k WHERE hashtextextended(key, 0) & 63 = 63 LIMIT 2`)
	require.NoError(t, err)
	b := hangingBroker{arrived: make(chan string, 2), goOn: make(chan struct{})}
	first := startSharer(t, pool, schema, testTTL, b)
	first.awaitSlots(t, 64, 64, shopPatience)
	require.NoError(t, first.store.Save(t.Context(), nil, outbox.Message{Topic: "hangs", Key: keys[0]}))
	require.Equal(t, "hangs", <-b.arrived)
	second := startSharer(t, pool, schema, testTTL, b)
	second.awaitSlots(t, 31, 32, shopPatience)
	require.NoError(t, first.store.Save(t.Context(), nil, outbox.Message{Topic: "goes on", Key: keys[1]}))
	select {
	case topic := <-b.arrived:
		require.Equal(t, "goes on", topic)
	case <-time.After(shopPatience):
		t.Error("another key of the slot waits for the call that hangs")
	}
	close(b.goOn)
}

// hangingBroker hangs in one topic.
type hangingBroker struct {
	arrived chan string
	goOn    chan struct{}
}

func (b hangingBroker) Close() error { return nil }

func (b hangingBroker) Publish(topic string, _ ...*message.Message) error {
	b.arrived <- topic
	if topic == "hangs" {
		<-b.goOn
	}
	return nil
}

// sharer is a Forwarder that tells of its slots.
type sharer struct {
	*outbox.Forwarder
	store   *pgxstore.Store
	changes chan int // more or fewer of them
	held    int
}

func startSharer(t *testing.T, pool *pgxpool.Pool, schema string, ttl time.Duration, b message.Publisher) *sharer {
	t.Helper()
	store, err := pgxstore.New(pool, pgxstore.WithSchema(schema), pgxstore.WithLeaseTTL(ttl))
	require.NoError(t, err)
	require.NoError(t, store.Migrate(t.Context()))
	s := &sharer{store: store, changes: make(chan int, 1000)}
	s.Forwarder, err = outbox.NewForwarder(store, b, outbox.WithLogger(watermill.NopLogger{}),
		outbox.WithObserver(outbox.ObserverFunc(func(_ context.Context, event outbox.Event) {
			switch e := event.(type) {
			case outbox.LeaseGainedEvent:
				s.changes <- len(e.Slots)
			case outbox.LeaseLostEvent:
				s.changes <- -len(e.Slots)
			}
		})))
	require.NoError(t, err)
	ended := make(chan error, 1)
	go func() { ended <- s.Run(context.Background()) }() // ends with Close
	t.Cleanup(func() {
		require.NoError(t, s.Close())
		require.NoError(t, <-ended)
	})
	return s
}

func (s *sharer) awaitSlots(t *testing.T, least, most int, patience time.Duration) {
	t.Helper()
	timeout := time.After(patience)
	for s.held < least || s.held > most {
		select {
		case change := <-s.changes:
			s.held += change
		case <-timeout:
			t.Fatalf("it has %d slots instead of %d to %d", s.held, least, most)
		}
	}
}
