// Package movingover runs an application on components/forwarder, the same one on the outbox, and the way from one to the
// other that docs/moving-over.md describes.
package movingover_test

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	watermillsql "github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/watermill-outbox/outbox/internal/pgtest"
	"github.com/watermill-outbox/outbox/store/postgres"
	"github.com/watermill-outbox/outbox/test/movingover/after"
	"github.com/watermill-outbox/outbox/test/movingover/before"
	"github.com/watermill-outbox/outbox/test/movingover/billing"
)

func TestMain(m *testing.M) {
	// The applications log to it. What they may have to say when they are stopped in the middle is no error here.
	slog.SetDefault(slog.New(slog.DiscardHandler))
	// sarama's metrics have a goroutine for all, which never ends.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/rcrowley/go-metrics.(*meterArbiter).tick"))
}

// patience is for what should come soon, on a machine that is busy.
const patience = time.Minute

// forwarderTopic is the topic that the application used components/forwarder with.
const forwarderTopic = "forwarder_topic"

// world is a database as the application before has left it.
type world struct {
	schema string
	db     *sql.DB
	store  *postgres.Store // whose tables nobody has created yet
	topic  string
}

var customers = []string{"ada", "bob", "cleo", "dan", "eve", "fay", "gus", "hal", "ida", "jon"}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{schema: pgtest.Schema(t, pgtest.V15), topic: "orders-" + strings.ToLower(rand.Text())}
	config, err := pgx.ParseConfig(pgtest.V15.URL())
	require.NoError(t, err)
	config.RuntimeParams["search_path"] = w.schema
	w.db = stdlib.OpenDB(*config)
	w.db.SetMaxOpenConns(20)
	t.Cleanup(func() { require.NoError(t, w.db.Close()) })
	w.exec(t, `CREATE TABLE customers (id text PRIMARY KEY, orders integer NOT NULL DEFAULT 0)`)
	w.exec(t, `CREATE TABLE bills (customer text, number integer, amount integer, PRIMARY KEY (customer, number))`)
	w.exec(t, `INSERT INTO customers (id) SELECT unnest($1::text[])`, customers)
	w.createOldTables(t, watermillsql.DefaultPostgreSQLSchema{})
	w.store, err = postgres.New(w.db, postgres.WithSchema(w.schema))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, w.store.Close()) })
	return w
}

// createOldTables does what the old forwarder has done when it ran for the first time.
func (w *world) createOldTables(t *testing.T, schema watermillsql.SchemaAdapter) {
	t.Helper()
	subscriber, err := watermillsql.NewSubscriber(w.db, watermillsql.SubscriberConfig{
		SchemaAdapter:  schema,
		OffsetsAdapter: watermillsql.DefaultPostgreSQLOffsetsAdapter{},
	}, watermill.NopLogger{})
	require.NoError(t, err)
	require.NoError(t, subscriber.SubscribeInitialize(forwarderTopic))
	require.NoError(t, subscriber.Close())
}

func (w *world) exec(t *testing.T, query string, args ...any) {
	t.Helper()
	_, err := w.db.ExecContext(t.Context(), query, args...)
	require.NoError(t, err)
}

func (w *world) count(t *testing.T, query string, args ...any) (n int) {
	t.Helper()
	require.NoError(t, w.db.QueryRowContext(t.Context(), query, args...).Scan(&n))
	return n
}

// place takes an order, by an instance of the application before or after.
type place func(ctx context.Context, customer string, amount int) error

func (w *world) old() place { return before.Orders{DB: w.db, Topic: w.topic}.Place }

func (w *world) new() place { return after.Orders{DB: w.db, Store: w.store, Topic: w.topic}.Place }

func (w *world) place(t *testing.T, by place, customer string, n int) {
	t.Helper()
	for range n {
		require.NoError(t, by(t.Context(), customer, 100))
	}
}

// run runs a process of the application until stop is called or the test ends.
func run(t *testing.T, main func(ctx context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- main(ctx) }() // ends with ctx
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err) // and not require, in a sync.OnceFunc
		}
	})
	t.Cleanup(stop)
	return stop
}

func (w *world) runOldForwarder(t *testing.T, broker message.Publisher) (stop func()) {
	t.Helper()
	return run(t, func(ctx context.Context) error { return before.RunForwarder(ctx, w.db, broker) })
}

func (w *world) runNewForwarder(t *testing.T, broker message.Publisher) (stop func()) {
	t.Helper()
	return run(t, func(ctx context.Context) error { return after.RunForwarder(ctx, w.db, w.store, broker) })
}

// order is what tells one order from another.
type order struct {
	Customer string `json:"customer"`
	Number   int    `json:"number"`
}

// record keeps what comes to a broker or to a consumer.
type record struct {
	mu      sync.Mutex
	came    []*message.Message
	arrived chan struct{}
}

func newRecord() *record { return &record{arrived: make(chan struct{}, 1)} }

func (r *record) add(msg *message.Message) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.came = append(r.came, msg)
	select {
	case r.arrived <- struct{}{}:
	default:
	}
}

// Publish makes the record a broker.
func (r *record) Publish(_ string, msgs ...*message.Message) error {
	for _, msg := range msgs {
		r.add(msg)
	}
	return nil
}

func (r *record) Close() error { return nil }

// await waits until n different messages have come, and returns all.
func (r *record) await(t *testing.T, n int) []*message.Message {
	t.Helper()
	timeout := time.After(patience)
	for {
		r.mu.Lock()
		came := r.came
		r.mu.Unlock()
		uuids := map[string]bool{}
		for _, msg := range came {
			uuids[msg.UUID] = true
		}
		if len(uuids) >= n {
			return came
		}
		select {
		case <-r.arrived:
		case <-timeout:
			require.Failf(t, "messages do not come", "%d of %d after %s", len(uuids), n, patience)
		}
	}
}

// numbers returns the numbers of each customer's orders as they came for the first time, and how many came again.
func numbers(t *testing.T, came []*message.Message) (byCustomer map[string][]int, duplicates int) {
	t.Helper()
	byCustomer = map[string][]int{}
	seen := map[string]bool{}
	for _, msg := range came {
		if seen[msg.UUID] {
			duplicates++
			continue
		}
		seen[msg.UUID] = true
		var o order
		require.NoError(t, json.Unmarshal(msg.Payload, &o))
		require.Equal(t, o.Customer, msg.Metadata.Get("customer_id"))
		byCustomer[o.Customer] = append(byCustomer[o.Customer], o.Number)
	}
	return byCustomer, duplicates
}

// placed returns the numbers of the orders that were committed.
func (w *world) placed(t *testing.T) map[string][]int {
	t.Helper()
	rows, err := w.db.QueryContext(t.Context(), `SELECT id, generate_series(1, orders) FROM customers ORDER BY 1, 2`)
	require.NoError(t, err)
	defer rows.Close() //nolint:errcheck // Err tells
	byCustomer := map[string][]int{}
	for rows.Next() {
		var o order
		require.NoError(t, rows.Scan(&o.Customer, &o.Number))
		byCustomer[o.Customer] = append(byCustomer[o.Customer], o.Number)
	}
	require.NoError(t, rows.Err())
	return byCustomer
}

func kafkaBrokers() []string {
	if named := os.Getenv("WATERMILL_TEST_KAFKA_BROKERS"); named != "" {
		return strings.Split(named, ",")
	}
	return []string{"127.0.0.1:19092"}
}

// kafka returns what one of the applications makes to publish to Kafka.
func (w *world) kafka(t *testing.T, newPublisher func(brokers []string) (message.Publisher, error)) message.Publisher {
	t.Helper()
	publisher, err := newPublisher(kafkaBrokers())
	require.NoError(t, err, "no Kafka: run `make services`, or name one in WATERMILL_TEST_KAFKA_BROKERS")
	t.Cleanup(func() { require.NoError(t, publisher.Close()) })
	return publisher
}

func (w *world) createTopic(t *testing.T) {
	t.Helper()
	admin, err := sarama.NewClusterAdmin(kafkaBrokers(), sarama.NewConfig())
	require.NoError(t, err, "no Kafka: run `make services`, or name one in WATERMILL_TEST_KAFKA_BROKERS")
	defer admin.Close() //nolint:errcheck // the topic is there, or not
	require.NoError(t, admin.CreateTopic(w.topic, &sarama.TopicDetail{NumPartitions: 8, ReplicationFactor: 1}, false))
}

// bill runs the consumer, which stays as it is, and records what it receives.
func (w *world) bill(t *testing.T) *record {
	t.Helper()
	config := kafka.DefaultSaramaSubscriberConfig()
	config.Consumer.Offsets.Initial = sarama.OffsetOldest
	subscriber, err := kafka.NewSubscriber(kafka.SubscriberConfig{
		Brokers:               kafkaBrokers(),
		Unmarshaler:           kafka.DefaultMarshaler{},
		OverwriteSaramaConfig: config,
		ConsumerGroup:         "billing-" + w.topic,
	}, watermill.NopLogger{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, subscriber.Close()) })
	received := newRecord()
	recorded, err := message.MessageTransformSubscriberDecorator(received.add)(subscriber)
	require.NoError(t, err)
	run(t, func(ctx context.Context) error { return billing.Run(ctx, w.db, recorded, w.topic) })
	return received
}
