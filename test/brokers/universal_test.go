package brokers_test

import (
	"maps"
	"strings"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/internal/pgtest"
	"github.com/watermill-outbox/outbox/store/pgxstore"
	"github.com/watermill-outbox/outbox/store/sqlite"
)

type storesByName map[string]func(t *testing.T) outbox.Store

func bothStores(string) storesByName {
	return storesByName{"SQLite": newSQLiteStore, "PostgreSQL": newPostgresStore}
}

// storesOf are the stores that a broker runs Watermill's suite with: both for Kafka, and one of them for the others. Whether
// stores do the same is for package storetest.
func storesOf(brokerName string) storesByName {
	switch brokerName {
	case "Kafka":
		return bothStores(brokerName)
	case "NATS JetStream", "Go channels":
		return storesByName{"SQLite": newSQLiteStore}
	default:
		return storesByName{"PostgreSQL": newPostgresStore}
	}
}

func newSQLiteStore(t *testing.T) outbox.Store {
	t.Helper()
	db, err := sqlite.Open(t.TempDir() + "/outbox.db")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	store, err := sqlite.New(db)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	require.NoError(t, store.Migrate(t.Context()))
	return store
}

func newPostgresStore(t *testing.T) outbox.Store {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), pgtest.V15.URL())
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	store, err := pgxstore.New(pool, pgxstore.WithSchema(pgtest.Schema(t, pgtest.V15)))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	require.NoError(t, store.Migrate(t.Context()))
	return store
}

// Watermill's suite for Pub/Subs, with the outbox and a Forwarder between publisher and broker.
func TestUniversal(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes minutes")
	}
	forEachPubSub(t, tests.TestPubSub, storesOf)
}

type universalSuite func(*testing.T, tests.Features, tests.PubSubConstructor, tests.ConsumerGroupPubSubConstructor)

func forEachPubSub(t *testing.T, suite universalSuite, storesOf func(brokerName string) storesByName) {
	universal := maps.Clone(brokers)
	universal["Go channels"] = newPersistentChannels
	for brokerName, newBroker := range universal {
		t.Run(brokerName, func(t *testing.T) {
			for storeName, newStore := range storesOf(brokerName) {
				t.Run(storeName, func(t *testing.T) { runUniversal(t, suite, newBroker(t), newStore(t)) })
			}
		})
	}
}

// runUniversal has one Forwarder for the whole of a suite, which goes on when a test closes its publisher.
func runUniversal(t *testing.T, suite universalSuite, b broker, store outbox.Store) {
	publisher := b.Publisher(t, &network{})
	t.Cleanup(func() { require.NoError(t, publisher.Close()) })
	f, err := outbox.NewForwarder(store, publisher)
	require.NoError(t, err)
	run(t, f)
	// The suite looks at the order of messages of one payload. And TestTopic reads its topic 1 before it reads topic 2: if
	// the message of topic 2 were published first, its consumer would hold a transaction open until the test acknowledged
	// it, and consumers of watermill-sql in all topics read nothing that was published after that began.
	byPayload := outbox.WithKeyFunc(func(topic string, msg *message.Message) (string, error) {
		topic = strings.TrimSuffix(strings.TrimSuffix(topic, "-1"), "-2")
		return topic + "/" + string(msg.Payload), nil
	})
	withGroup := func(t *testing.T, group string) (message.Publisher, message.Subscriber) {
		saves, err := outbox.NewPublisher(store, outbox.WithOwnTx(), byPayload) // a transaction for each Publish
		require.NoError(t, err)
		return saves, b.Subscriber(t, group)
	}
	suite(t, b.Features(), func(t *testing.T) (message.Publisher, message.Subscriber) {
		return withGroup(t, "")
	}, withGroup)
}
