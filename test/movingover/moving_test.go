package movingover_test

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/test/movingover/after"
	"github.com/watermill-outbox/outbox/test/movingover/before"
)

// The application does the same before and after, for its consumers, too.
func TestApplication_BillsOrdersInOrder(t *testing.T) {
	for name, start := range map[string]func(t *testing.T, w *world) place{
		"before": func(t *testing.T, w *world) place {
			w.runOldForwarder(t, w.kafka(t, before.NewKafkaPublisher))
			return w.old()
		},
		"after": func(t *testing.T, w *world) place {
			require.NoError(t, after.Migrate(t.Context(), w.db, w.store))
			w.runNewForwarder(t, w.kafka(t, after.NewKafkaPublisher))
			return w.new()
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.createTopic(t)
			received := w.bill(t)
			by := start(t, w)
			for _, customer := range customers {
				w.place(t, by, customer, 5)
			}
			came, duplicates := numbers(t, received.await(t, 50))
			require.Equal(t, w.placed(t), came)
			require.Zero(t, duplicates)
			require.Eventually(t, func() bool { return w.count(t, `SELECT count(*) FROM bills WHERE amount = 100`) == 50 },
				patience, 20*time.Millisecond)
		})
	}
}

// Invariant: of two orders of one customer, the one that was committed first comes first, whichever instances took them,
// the old way or the new, before the move, in it or after; and each comes. It holds because
//   - what was published before the redirection is in the old topic, and all later messages in the outbox, in the order
//     of their commits: the redirection waits for open transactions, and new ones wait for it;
//   - the Forwarder begins when the old topic is empty, and it stays empty.
func TestMovingOver_LosesNothingAndKeepsOrder_WhileOrdersArePlaced(t *testing.T) {
	if testing.Short() {
		t.Skip("it places orders for many seconds")
	}
	w := newWorld(t)
	w.createTopic(t)
	load := &load{w: w, instances: [2]place{w.old(), w.old()}}
	for i := range 300 { // the backlog
		w.place(t, load.instances[i%2], customers[i%len(customers)], 1)
	}
	received := w.bill(t)
	gate := newGate(150) // so that most of the backlog is there while the application is rolled over
	defer gate.open()
	stopOld := w.runOldForwarder(t, gate.to(w.kafka(t, before.NewKafkaPublisher)))
	stopLoad := load.start(t)
	received.await(t, 150)

	// Step 1, in one go. Its lock may have to wait for longer than it will.
	require.Eventually(t, func() bool { return after.Migrate(t.Context(), w.db, w.store) == nil }, patience, time.Millisecond)

	// Step 2, in any order. An update that was taken back changes nothing either.
	load.roll(t, 0, w.new())
	load.roll(t, 0, w.old())
	w.runNewForwarder(t, gate.to(w.kafka(t, after.NewKafkaPublisher)))
	load.roll(t, 1, w.new())
	require.False(t, w.isDrained(t))
	gate.open()
	stopOld() // in the middle of a batch
	load.roll(t, 0, w.new())
	stopLoad()

	expected := w.placed(t)
	total := w.count(t, `SELECT sum(orders) FROM customers`)
	messages := received.await(t, total)
	came, duplicates := numbers(t, messages)
	require.Equal(t, expected, came)
	require.Eventually(t, func() bool { return w.count(t, `SELECT count(*) FROM bills`) == total }, patience, 20*time.Millisecond)

	inOldTopic := w.count(t, `SELECT count(*) FROM watermill_forwarder_topic`)
	require.Less(t, inOldTopic, total)
	require.Eventually(t, func() bool { return w.count(t, `SELECT count(*) FROM outbox_messages`) == 0 }, patience, 20*time.Millisecond)
	require.Zero(t, w.count(t, `SELECT count(*) FROM outbox_archive`), "set aside")
	// An old forwarder that stops in a batch of a hundred leaves all of it to the next one. The outbox publishes each once.
	require.Len(t, withKey(t, messages), total-inOldTopic)
	t.Logf("%d orders, %d of them by the old topic, %d duplicates", total, inOldTopic, duplicates)
}

// gate is before a broker: it lets some messages through, and then keeps Publish calls waiting until it is opened.
type gate struct {
	through atomic.Int64 // how many more
	opened  chan struct{}
	open    func()
}

func newGate(through int64) *gate {
	g := &gate{opened: make(chan struct{})}
	g.through.Store(through)
	g.open = sync.OnceFunc(func() { close(g.opened) })
	return g
}

func (g *gate) to(broker message.Publisher) message.Publisher { return gated{broker, g} }

type gated struct {
	message.Publisher
	gate *gate
}

func (g gated) Publish(topic string, msgs ...*message.Message) error {
	if g.gate.through.Add(-1) < 0 {
		<-g.gate.opened
	}
	return g.Publisher.Publish(topic, msgs...)
}

// withKey returns the messages that the outbox has added the key to. It finds nothing else in any message's metadata but
// the customer.
func withKey(t *testing.T, messages []*message.Message) (byOutbox []*message.Message) {
	t.Helper()
	for _, msg := range messages {
		customer := msg.Metadata.Get("customer_id")
		expected := message.Metadata{"customer_id": customer}
		if outbox.Key(msg) != "" {
			byOutbox = append(byOutbox, msg)
			expected["_outbox_key"] = customer
		}
		require.Equal(t, expected, msg.Metadata)
	}
	return byOutbox
}

// load has clients place orders by whichever instance is there.
type load struct {
	w         *world
	placed    atomic.Int64
	mu        sync.Mutex
	instances [2]place
}

// start begins. Each order of a client is by another instance, so that a customer's orders come by all of them.
func (l *load) start(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() { // ends with ctx
			for ctx.Err() == nil {
				l.mu.Lock()
				by := l.instances[rand.IntN(len(l.instances))]
				l.mu.Unlock()
				customer := customers[rand.IntN(len(customers))]
				if err := by(context.Background(), customer, 100); err != nil {
					t.Error(err) // and not require, in a goroutine
					return
				}
				l.placed.Add(1)
				time.Sleep(5 * time.Millisecond) // a client that thinks: the load is to be there, not heavy
			}
		})
	}
	stop = sync.OnceFunc(func() {
		cancel()
		clients.Wait()
	})
	t.Cleanup(stop)
	return stop
}

// roll replaces an instance and waits until both kinds have been at work for a while. What the former one has begun goes
// on meanwhile.
func (l *load) roll(t *testing.T, i int, by place) {
	t.Helper()
	l.mu.Lock()
	l.instances[i] = by
	l.mu.Unlock()
	target := l.placed.Load() + 60
	require.Eventually(t, func() bool { return l.placed.Load() >= target }, patience, time.Millisecond)
}
