package outbox_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/store/memory"
	"github.com/watermill-outbox/outbox/store/sqlite"
)

// broker is a message.Publisher that records what it is given, and answers what the test says.
type broker struct {
	mu        sync.Mutex
	published []*message.Message
	topics    []string
	answer    func(topic string, msg *message.Message) error // nil: success
	arrived   chan struct{}                                  // one token per recorded message, as far as it has room
}

func newBroker() *broker { return &broker{arrived: make(chan struct{}, 1<<20)} }

func (b *broker) Publish(topic string, msgs ...*message.Message) error {
	for _, msg := range msgs {
		if b.answer != nil {
			if err := b.answer(topic, msg); err != nil {
				return err
			}
		}
		b.mu.Lock()
		b.published = append(b.published, msg)
		b.topics = append(b.topics, topic)
		b.mu.Unlock()
		b.arrived <- struct{}{}
	}
	return nil
}

func (b *broker) Close() error { return nil }

func (b *broker) payloads() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var all []string
	for _, msg := range b.published {
		all = append(all, string(msg.Payload))
	}
	return all
}

// await waits until n messages have been published since the last call.
func (b *broker) await(t *testing.T, n int) {
	t.Helper()
	timeout := time.After(30 * time.Second)
	for i := range n {
		select {
		case <-b.arrived:
		case <-timeout:
			require.FailNow(t, "timeout", "%d of %d messages have arrived: %v", i, n, b.payloads())
		}
	}
}

func newMessage(payload, key string) *message.Message {
	msg := message.NewMessage(watermill.NewUUID(), []byte(payload))
	outbox.SetKey(msg, key)
	return msg
}

// publish saves messages in one transaction of their own.
func publish(t *testing.T, store outbox.Store, topic string, msgs ...*message.Message) {
	t.Helper()
	pub, err := outbox.NewPublisher(store, outbox.WithOwnTx())
	require.NoError(t, err)
	require.NoError(t, pub.Publish(topic, msgs...))
}

// run starts a Forwarder and closes it at the end of the test.
func run(t *testing.T, store outbox.Store, pub message.Publisher, opts ...outbox.Option) *outbox.Forwarder {
	t.Helper()
	opts = append([]outbox.Option{outbox.WithLogger(watermill.NopLogger{})}, opts...)
	f, err := outbox.NewForwarder(store, pub, opts...)
	require.NoError(t, err)
	ended := make(chan error, 1)
	go func() { ended <- f.Run(context.Background()) }()
	t.Cleanup(func() {
		require.NoError(t, f.Close())
		require.NoError(t, <-ended)
	})
	select {
	case <-f.Running():
	case err := <-ended:
		require.FailNow(t, "ended", "%v", err)
	}
	return f
}

func newMemory(t *testing.T, opts ...memory.Option) *memory.Store {
	t.Helper()
	store, err := memory.New(opts...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	return store
}

func newSQLite(t *testing.T, opts ...sqlite.Option) (*sqlite.Store, *sql.DB) {
	t.Helper()
	db, err := sqlite.Open(filepath.Join(t.TempDir(), "outbox.db?_synchronous=NORMAL"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	store, err := sqlite.New(db, opts...)
	require.NoError(t, err)
	require.NoError(t, store.Migrate(context.Background()))
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	return store, db
}

// forEachStore runs a test over every kind of store.
func forEachStore(t *testing.T, test func(t *testing.T, store outbox.LeasedStore)) {
	t.Helper()
	t.Run("memory", func(t *testing.T) { test(t, newMemory(t)) })
	t.Run("memory with slots", func(t *testing.T) { test(t, newMemory(t, memory.WithSlots(8))) })
	t.Run("sqlite", func(t *testing.T) {
		store, _ := newSQLite(t)
		test(t, store)
	})
}

func TestForwarder_PublishesWhatWasCommitted_InOrderPerKey(t *testing.T) {
	forEachStore(t, func(t *testing.T, store outbox.LeasedStore) {
		const keys, perKey = 20, 50
		for i := range perKey {
			for k := range keys {
				publish(t, store, "topic", newMessage(strconv.Itoa(i), fmt.Sprintf("key-%d", k)))
			}
		}
		b := newBroker()
		run(t, store, b)
		b.await(t, keys*perKey)

		next := map[string]int{}
		for _, msg := range b.published {
			key, err := outbox.PartitionKey("topic", msg)
			require.NoError(t, err)
			require.Equal(t, strconv.Itoa(next[key]), string(msg.Payload), "key %s", key)
			next[key]++
		}
		require.Len(t, next, keys)
	})
}

func TestForwarder_LeavesNothingBehind(t *testing.T) {
	forEachStore(t, func(t *testing.T, store outbox.LeasedStore) {
		for i := range 100 {
			publish(t, store, "topic", newMessage(strconv.Itoa(i), strconv.Itoa(i%7)))
		}
		b := newBroker()
		f, err := outbox.NewForwarder(store, b, outbox.WithLogger(watermill.NopLogger{}))
		require.NoError(t, err)
		n, err := f.Drain(context.Background())
		require.NoError(t, err)
		require.Equal(t, 100, n)
		stats, err := store.(outbox.StatsReporter).Stats(context.Background())
		require.NoError(t, err)
		require.Zero(t, stats.Pending)
		require.Zero(t, stats.Failed)
	})
}

func TestForwarder_KeepsOrderOfAKey_WhenItsFirstMessageFails(t *testing.T) {
	forEachStore(t, func(t *testing.T, store outbox.LeasedStore) {
		b := newBroker()
		failures := 5
		b.answer = func(_ string, msg *message.Message) error {
			b.mu.Lock()
			defer b.mu.Unlock()
			if string(msg.Payload) == "a1" && failures > 0 {
				failures--
				return errors.New("not today")
			}
			return nil
		}
		publish(t, store, "topic", newMessage("a1", "a"), newMessage("a2", "a"), newMessage("b1", "b"), newMessage("a3", "a"))
		run(t, store, b, outbox.WithRetryBackoff(time.Millisecond, 5*time.Millisecond))
		b.await(t, 4)
		all := b.payloads()
		require.Equal(t, "b1", all[0], "another key must not wait")
		require.Equal(t, []string{"a1", "a2", "a3"}, slices.DeleteFunc(all, func(p string) bool { return p == "b1" }))
	})
}
