package docs_test

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/migrations"
	"github.com/watermill-outbox/outbox/store/pgxstore"
)

// topicPlaced is a topic of the test's own.
var topicPlaced string

// docs:begin store
func openOutbox(ctx context.Context, pool *pgxpool.Pool) (*pgxstore.Store, error) {
	store, err := pgxstore.New(pool)
	if err != nil {
		return nil, err
	}
	return store, store.Migrate(ctx) // creates the tables, or brings them up to this release
}

// docs:end store

// docs:begin publish
func placeOrder(ctx context.Context, pool *pgxpool.Pool, store *pgxstore.Store, orderID string) error {
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "INSERT INTO orders (id) VALUES ($1)", orderID); err != nil {
			return err
		}
		msg := message.NewMessage(watermill.NewUUID(), []byte(orderID))
		outbox.SetKey(msg, orderID) // messages of one key stay in order
		return store.Publisher(tx).Publish(topicPlaced, msg)
	})
}

// docs:end publish

// docs:begin kafka
func newKafkaPublisher(brokers []string, logger watermill.LoggerAdapter) (*kafka.Publisher, error) {
	config := kafka.DefaultSaramaSyncPublisherConfig()
	config.Producer.RequiredAcks = sarama.WaitForAll // all in-sync replicas have it, and not the leader only
	config.Producer.Retry.Max = 3                    // the outbox tries again, and knows what must wait meanwhile
	config.Metadata.Retry.Max = 1
	config.Metadata.Retry.Backoff = 100 * time.Millisecond
	return kafka.NewPublisher(kafka.PublisherConfig{
		Brokers:               brokers,
		Marshaler:             kafka.NewWithPartitioningMarshaler(outbox.PartitionKey), // a key keeps to its partition
		OverwriteSaramaConfig: config,
	}, logger)
}

// docs:end kafka

// docs:begin subscriber
func newKafkaSubscriber(brokers []string, group string, logger watermill.LoggerAdapter) (*kafka.Subscriber, error) {
	config := kafka.DefaultSaramaSubscriberConfig()
	config.Consumer.Offsets.Initial = sarama.OffsetOldest // or a new group misses what was there before it
	return kafka.NewSubscriber(kafka.SubscriberConfig{
		Brokers:               brokers,
		Unmarshaler:           kafka.DefaultMarshaler{},
		ConsumerGroup:         group, // each handler has its own
		OverwriteSaramaConfig: config,
		// For SubscribeInitialize. In production there should be three replicas, and min.insync.replicas=2.
		InitializeTopicDetails: &sarama.TopicDetail{NumPartitions: 8, ReplicationFactor: 1},
	}, logger)
}

// docs:end subscriber

// docs:begin permanent

// isPermanent knows what sarama refuses by itself: what is too large, and invalid topics.
func isPermanent(err error) bool {
	var tooLarge sarama.ConfigurationError
	return errors.As(err, &tooLarge) || errors.Is(err, sarama.ErrInvalidTopic)
}

// docs:end permanent

// docs:begin router
func newRouter(
	store *pgxstore.Store, publisher message.Publisher, subscriber message.Subscriber, logger watermill.LoggerAdapter,
) (*message.Router, error) {
	forwarder, err := outbox.NewForwarder(store, publisher,
		outbox.WithCloseTimeout(20*time.Second), outbox.WithPermanentError(isPermanent))
	if err != nil {
		return nil, err
	}
	dedup, err := outbox.NewDeduplicator(store.Processed(), "billing")
	if err != nil {
		return nil, err
	}
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: 25 * time.Second}, logger)
	if err != nil {
		return nil, err
	}
	router.AddPlugin(forwarder.RouterPlugin) // the Forwarder runs as long as the router does
	retry := middleware.Retry{
		MaxRetries: 4, InitialInterval: 100 * time.Millisecond, Multiplier: 2, MaxInterval: time.Second,
		ResetContextOnRetry: true, Logger: logger,
	}
	router.AddMiddleware(retry.Middleware, middleware.Recoverer, dedup.Middleware)
	router.AddConsumerHandler("bill-order", topicPlaced, subscriber, func(msg *message.Message) error {
		return billOrder(msg, store)
	})
	return router, nil
}

// docs:end router

// docs:begin handler
func billOrder(msg *message.Message, store *pgxstore.Store) error {
	tx, ok := store.TxFromContext(msg.Context()) // commits together with the record that msg was handled
	if !ok {
		return outbox.ErrNoTx
	}
	_, err := tx.Exec(msg.Context(), "INSERT INTO bills (order_id) VALUES ($1)", string(msg.Payload))
	return err
}

// docs:end handler

// Invariant: each order that was committed is billed once, and no other is.
func TestGettingStarted_EachCommittedOrderIsBilledOnce_ThroughKafka(t *testing.T) {
	topicPlaced = "docs-" + strings.ToLower(rand.Text())
	pool := newPool(t)
	store, err := openOutbox(t.Context(), pool)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	logger := watermill.NewSlogLogger(slog.New(slog.NewTextHandler(t.Output(), nil)))
	publisher, err := newKafkaPublisher(kafkaBrokers(), logger)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, publisher.Close()) })
	subscriber, err := newKafkaSubscriber(kafkaBrokers(), topicPlaced, logger)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, subscriber.Close()) })
	require.NoError(t, subscriber.SubscribeInitialize(topicPlaced))

	require.NoError(t, placeOrder(t.Context(), pool, store, "42"))
	require.Error(t, placeOrder(t.Context(), pool, store, "42"), "an order is placed twice")
	twice := orderPlaced("43")
	for range 2 { // the broker delivers it again
		require.NoError(t, publisher.Publish(topicPlaced, twice))
	}
	router, err := newRouter(store, publisher, subscriber, logger)
	require.NoError(t, err)
	var running sync.WaitGroup
	running.Go(func() { _ = router.Run(context.WithoutCancel(t.Context())) }) // ends when the router is closed
	require.Eventually(t, func() bool {
		return count(t, pool, "SELECT count(*) FROM bills") == 2 && count(t, pool, "SELECT count(*) FROM outbox_messages") == 0
	}, patience, 50*time.Millisecond)
	require.NoError(t, placeOrder(t.Context(), pool, store, "44"))
	require.Eventually(t, func() bool { return count(t, pool, "SELECT count(*) FROM bills") == 3 }, patience, 50*time.Millisecond)
	require.NoError(t, router.Close())
	running.Wait()
	require.Equal(t, 3, count(t, pool, "SELECT count(DISTINCT order_id) FROM bills"))
}

// docs:begin migrate
func migrate(ctx context.Context, pool *pgxpool.Pool) error {
	db := stdlib.OpenDBFromPool(pool) // or the *sql.DB that your migrations run on
	defer func() { _ = db.Close() }()
	return migrations.Up(ctx, db, "pgx")
}

// docs:end migrate

func TestGettingStarted_TablesCanBeMadeWithoutAStore(t *testing.T) {
	pool := newPool(t)
	require.NoError(t, migrate(t.Context(), pool))
	store, err := pgxstore.New(pool)
	require.NoError(t, err)
	require.NoError(t, store.CheckSchema(t.Context()))
}
