package router_test

import (
	"context"
	"crypto/rand"
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

// service is what the tests look at: an outbox and tables on PostgreSQL, and topics in Kafka that nobody else has.
type service struct {
	name   string // before the name of each of its topics and consumer groups
	pool   *pgxpool.Pool
	store  *pgxstore.Store
	kafka  message.Publisher
	logger watermill.LoggerAdapter
}

// newService creates the service's topics, and its tables by tables. Nothing in those is unique, so that what happens
// twice shows.
func newService(t testing.TB, tables string, topics ...string) *service {
	t.Helper()
	s := &service{
		name:   strings.ToLower(rand.Text()),
		kafka:  newKafkaPublisher(t),
		logger: watermill.NewSlogLogger(slog.New(slog.NewTextHandler(t.Output(), nil))),
	}
	schema := pgtest.Schema(t, pgtest.V15)
	config, err := pgxpool.ParseConfig(pgtest.V15.URL())
	require.NoError(t, err)
	config.ConnConfig.RuntimeParams["search_path"] = schema
	config.MaxConns = 16
	s.pool, err = pgxpool.NewWithConfig(t.Context(), config)
	require.NoError(t, err)
	t.Cleanup(s.pool.Close)
	s.store, err = pgxstore.New(s.pool, pgxstore.WithSchema(schema))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.store.Close()) })
	require.NoError(t, s.store.Migrate(t.Context()))
	_, err = s.pool.Exec(t.Context(), tables)
	require.NoError(t, err)
	for i, topic := range topics {
		topics[i] = s.topic(topic)
	}
	createTopics(t, topics...)
	return s
}

func (s *service) topic(name string) string { return s.name + "." + name }

// subscriber returns one of the group. Routers close theirs; what the test subscribes to by itself, it closes itself.
func (s *service) subscriber(group string) (message.Subscriber, error) {
	return newKafkaSubscriber(s.name + "." + group)
}

// forward runs a Forwarder until stop is called or the test ends. What it has published stays in the archive.
func (s *service) forward(t testing.TB, publisher message.Publisher) (stop func()) {
	t.Helper()
	f, err := outbox.NewForwarder(s.store, publisher, outbox.WithRetention(time.Hour), outbox.WithLogger(s.logger))
	require.NoError(t, err)
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

// run runs a router until stop is called or the test ends.
func run(t testing.TB, router *message.Router) (stop func()) {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- router.Run(context.Background()) }() // ends when it is closed
	select {
	case <-router.Running():
	case err := <-ended:
		require.NoError(t, err)
	}
	stop = sync.OnceFunc(func() {
		require.NoError(t, router.Close())
		require.NoError(t, <-ended)
	})
	t.Cleanup(stop)
	return stop
}

// twice is a broker that delivers each message twice.
type twice struct{ message.Publisher }

func (p twice) Publish(topic string, msgs ...*message.Message) error {
	if err := p.Publisher.Publish(topic, msgs...); err != nil {
		return err
	}
	return p.Publisher.Publish(topic, msgs...)
}

// deliveries counts, for each handler and UUID, how often it was handled without an error.
type deliveries struct {
	mu       sync.Mutex
	handled  map[string]map[string]int
	messages map[string][]*message.Message // by handler, the first delivery of each
	changed  chan struct{}
}

func newDeliveries() *deliveries {
	return &deliveries{
		handled:  map[string]map[string]int{},
		messages: map[string][]*message.Message{},
		changed:  make(chan struct{}, 1),
	}
}

// middleware is the outermost.
func (d *deliveries) middleware(h message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) ([]*message.Message, error) {
		produced, err := h(msg)
		if err == nil {
			d.add(message.HandlerNameFromCtx(msg.Context()), msg)
		}
		return produced, err
	}
}

func (d *deliveries) add(handler string, msg *message.Message) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.handled[handler] == nil {
		d.handled[handler] = map[string]int{}
	}
	if d.handled[handler][msg.UUID]++; d.handled[handler][msg.UUID] == 1 {
		d.messages[handler] = append(d.messages[handler], msg)
	}
	select {
	case d.changed <- struct{}{}:
	default:
	}
}

// await waits until each handler has handled that many different messages, each of them times times, and returns the
// messages.
func (d *deliveries) await(t testing.TB, times int, expected map[string]int) map[string][]*message.Message {
	t.Helper()
	timeout := time.After(patience)
	for {
		d.mu.Lock()
		complete := true
		for handler, n := range expected {
			often := 0
			for _, count := range d.handled[handler] {
				if count >= times {
					often++
				}
			}
			complete = complete && often >= n
		}
		messages := maps.Clone(d.messages)
		d.mu.Unlock()
		if complete {
			return messages
		}
		select {
		case <-d.changed:
		case <-timeout:
			d.mu.Lock()
			defer d.mu.Unlock()
			require.Failf(t, "messages do not come", "expected %v, each %d times, have %v", expected, times, d.handled)
		}
	}
}

// poisoned returns the messages that were given up.
func (s *service) poisoned(t testing.TB) []string {
	t.Helper()
	return s.rows(t, `
		SELECT convert_from(payload, 'UTF8') || ': ' || (headers ->> 'reason_poisoned')
		FROM (SELECT topic, payload, headers FROM outbox_messages
			UNION ALL SELECT topic, payload, headers FROM outbox_archive) AS messages
		WHERE topic = $1`,
		s.topic("poison"))
}

// rows returns what query finds, a line for each row.
func (s *service) rows(t testing.TB, query string, args ...any) []string {
	t.Helper()
	found, err := s.pool.Query(t.Context(), query, args...)
	require.NoError(t, err)
	lines, err := pgx.CollectRows(found, pgx.RowTo[string])
	require.NoError(t, err)
	return lines
}
