package brokers_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/internal/pgtest"
	"github.com/watermill-outbox/outbox/store/pgxstore"
)

// patience is for what should come soon, on a machine that is busy.
const patience = time.Minute

// world is an outbox on PostgreSQL, a broker, and a topic.
type world struct {
	broker broker
	topic  string
	net    *network

	schema    string
	pool      *pgxpool.Pool
	store     *pgxstore.Store
	publisher message.Publisher // the broker's
}

func newWorld(t testing.TB, b broker) *world {
	t.Helper()
	w := &world{broker: b, topic: newTopic(), net: &network{}, schema: pgtest.Schema(t, pgtest.V15)}
	var err error
	w.pool, err = pgxpool.New(t.Context(), pgtest.V15.URL())
	require.NoError(t, err)
	t.Cleanup(w.pool.Close)
	w.store = w.newStore(t)
	require.NoError(t, w.store.Migrate(t.Context()))
	b.CreateTopic(t, w.topic)
	w.publisher = b.Publisher(t, w.net)
	t.Cleanup(func() { require.NoError(t, w.publisher.Close()) })
	return w
}

func newTopic() string { return "topic-" + strings.ToLower(rand.Text()) }

func (w *world) newStore(t testing.TB) *pgxstore.Store {
	t.Helper()
	store, err := pgxstore.New(w.pool, pgxstore.WithSchema(w.schema))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	return store
}

// forward runs a Forwarder until stop is called or the test ends. It keeps what it has published.
func (w *world) forward(t *testing.T, opts ...outbox.Option) (stop func()) {
	t.Helper()
	logger := watermill.NewSlogLogger(slog.New(slog.NewTextHandler(t.Output(), nil)))
	f, err := outbox.NewForwarder(w.store, w.publisher, append([]outbox.Option{
		outbox.WithRetention(time.Hour), outbox.WithLogger(logger), outbox.WithPermanentError(w.broker.IsPermanent),
	}, opts...)...)
	require.NoError(t, err)
	return run(t, f)
}

// run runs a Forwarder until stop is called or the test ends.
func run(t *testing.T, f *outbox.Forwarder) (stop func()) {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- f.Run(context.Background()) }() // ends when it is closed
	select {
	case <-f.Running():
	case err := <-ended:
		require.NoError(t, err)
	}
	stop = sync.OnceFunc(func() {
		require.NoError(t, f.Close())
		require.NoError(t, <-ended)
	})
	t.Cleanup(stop)
	return stop
}

// sent is a message that was committed, as its consumer should see it.
type sent struct {
	uuid, key string
	payload   string
	metadata  message.Metadata
}

// writer publishes messages of keys that nobody else has, in transactions of their own of which some are rolled back.
type writer struct {
	number int
	sent   []sent // in the order of their commits
}

const keysPerWriter = 5

// publish publishes the writer's next messages.
func (w *world) publish(ctx context.Context, wr *writer, n int) error {
	for range n {
		number := len(wr.sent)
		msg := message.NewMessage(watermill.NewUUID(), fmt.Appendf(nil, `{"writer": %d, "number": %d}`, wr.number, number))
		msg.Metadata.Set("correlation_id", watermill.NewShortUUID())
		msg.Metadata.Set("name", "Größe ∞")
		msg.Metadata.Set("empty", "")
		msg.Metadata.Set("Case-Is-Kept", strings.Repeat("v", 1000))
		key := fmt.Sprintf("key-%d-%d", wr.number, number%keysPerWriter)
		outbox.SetKey(msg, key)
		expected := sent{msg.UUID, key, string(msg.Payload), maps.Clone(msg.Metadata)}

		if number%10 == 9 {
			phantom := message.NewMessage(watermill.NewUUID(), []byte("phantom"))
			outbox.SetKey(phantom, key)
			if err := w.inTx(ctx, phantom, errRollback); err != nil {
				return err
			}
		}
		if err := w.inTx(ctx, msg, nil); err != nil {
			return err
		}
		wr.sent = append(wr.sent, expected)
	}
	return nil
}

var errRollback = fmt.Errorf("rolled back")

func (w *world) inTx(ctx context.Context, msg *message.Message, end error) error {
	err := pgx.BeginFunc(ctx, w.pool, func(tx pgx.Tx) error {
		if err := w.store.Publisher(tx).Publish(w.topic, msg); err != nil {
			return err
		}
		return end
	})
	if err == end { //nolint:errorlint // it is that one
		return nil
	}
	return err
}

// consumer receives what comes to a topic, and acknowledges it at once.
type consumer struct {
	mu       sync.Mutex
	received []*message.Message
	arrived  chan struct{}
}

func (w *world) consume(t *testing.T) *consumer {
	t.Helper()
	c := &consumer{arrived: make(chan struct{}, 1)}
	subscriber := w.broker.Subscriber(t, "consumer-"+w.topic)
	messages, err := subscriber.Subscribe(context.Background(), w.topic)
	require.NoError(t, err)
	ended := make(chan struct{})
	go func() { // ends with the subscription
		defer close(ended)
		for msg := range messages {
			c.mu.Lock()
			c.received = append(c.received, msg)
			c.mu.Unlock()
			msg.Ack()
			select {
			case c.arrived <- struct{}{}:
			default:
			}
		}
	}()
	t.Cleanup(func() {
		require.NoError(t, subscriber.Close())
		<-ended
	})
	return c
}

// await waits until n different messages have come, and returns all.
func (c *consumer) await(t *testing.T, n int) []*message.Message {
	t.Helper()
	timeout := time.After(patience)
	for {
		c.mu.Lock()
		received := c.received
		c.mu.Unlock()
		uuids := map[string]bool{}
		for _, msg := range received {
			uuids[msg.UUID] = true
		}
		if len(uuids) >= n {
			return received
		}
		select {
		case <-c.arrived:
		case <-timeout:
			require.Failf(t, "messages do not come", "%d of %d after %s", len(uuids), n, patience)
		}
	}
}

func (c *consumer) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.received)
}

// requireDelivered compares what was committed with what was received: each message is there, exactly as it was, nothing
// else is, and the first deliveries of a key are in order. It returns how many came again.
func requireDelivered(t *testing.T, writers []*writer, received []*message.Message) (duplicates int) {
	t.Helper()
	first := map[string]*message.Message{}
	order := map[string][]string{}
	for _, msg := range received {
		if first[msg.UUID] != nil {
			duplicates++
			continue
		}
		first[msg.UUID] = msg
		order[outbox.Key(msg)] = append(order[outbox.Key(msg)], msg.UUID)
	}
	expected := map[string][]string{}
	for _, wr := range writers {
		for _, s := range wr.sent {
			expected[s.key] = append(expected[s.key], s.uuid)
			msg := first[s.uuid]
			require.NotNil(t, msg, "lost: %+v", s)
			require.Equal(t, s.payload, string(msg.Payload))
			require.Equal(t, s.metadata, msg.Metadata)
		}
	}
	require.Equal(t, expected, order)
	return duplicates
}

// retries returns how many of the world's messages have used up attempts.
func (w *world) retries(t *testing.T) (count int) {
	t.Helper()
	query := "SELECT (SELECT count(*) FROM " + w.schema + ".outbox_archive WHERE retries > 0 OR status <> 'processed')" +
		" + (SELECT count(*) FROM " + w.schema + ".outbox_messages WHERE retries > 0)"
	require.NoError(t, w.pool.QueryRow(t.Context(), query).Scan(&count))
	return count
}

// pending returns how many messages are in the outbox.
func (w *world) pending(t *testing.T) (count int) {
	t.Helper()
	require.NoError(t, w.pool.QueryRow(t.Context(), "SELECT count(*) FROM "+w.schema+".outbox_messages").Scan(&count))
	return count
}
