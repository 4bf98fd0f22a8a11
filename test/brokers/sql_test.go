package brokers_test

import (
	"database/sql"
	"errors"
	"strings"
	"testing"
	"time"

	watermillsql "github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox/internal/pgtest"
)

// sqlBroker is watermill-sql with a table for each topic, in a schema that is not the outbox's.
type sqlBroker struct{ schema string }

func newSQL(t testing.TB) broker {
	t.Helper()
	return sqlBroker{pgtest.Schema(t, pgtest.V15)}
}

func (s sqlBroker) open(t testing.TB, net *network) *sql.DB {
	t.Helper()
	config, err := pgx.ParseConfig(pgtest.V15.URL())
	require.NoError(t, err)
	config.DialFunc = net.DialContext
	config.RuntimeParams["search_path"] = s.schema
	db := stdlib.OpenDB(*config)
	db.SetMaxOpenConns(60) // a subscription holds a connection or two
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	return db
}

// docs:begin sql

// The payload is JSON by default, which refuses payloads that are none.
var bytea = watermillsql.DefaultPostgreSQLSchema{GeneratePayloadType: func(string) string { return "BYTEA" }}

// docs:end sql

func (s sqlBroker) Publisher(t testing.TB, net *network) message.Publisher {
	t.Helper()
	config := watermillsql.PublisherConfig{SchemaAdapter: bytea}
	publisher, err := watermillsql.NewPublisher(s.open(t, net), config, quiet)
	require.NoError(t, err)
	return publisher
}

func (s sqlBroker) Subscriber(t testing.TB, group string) message.Subscriber {
	t.Helper()
	subscriber, err := watermillsql.NewSubscriber(s.open(t, &network{}), watermillsql.SubscriberConfig{
		ConsumerGroup:    group,
		SchemaAdapter:    bytea,
		OffsetsAdapter:   watermillsql.DefaultPostgreSQLOffsetsAdapter{},
		PollInterval:     20 * time.Millisecond,
		ResendInterval:   20 * time.Millisecond,
		InitializeSchema: true,
	}, quiet)
	require.NoError(t, err)
	return subscriber
}

func (s sqlBroker) CreateTopic(t testing.TB, topic string) {
	t.Helper()
	subscriber := s.Subscriber(t, "")
	require.NoError(t, subscriber.(message.SubscribeInitializer).SubscribeInitialize(topic))
	require.NoError(t, subscriber.Close())
}

func (sqlBroker) Refuse(msg *message.Message) bool {
	msg.UUID = strings.Repeat("u", 37) // it has VARCHAR(36) for that
	return true
}

func (sqlBroker) TellsWhatIsPermanent() bool { return true }

func (sqlBroker) IsPermanent(err error) bool { return isPermanentSQL(err) }

// docs:begin sql-permanent

// isPermanentSQL knows PostgreSQL's class of errors in the data.
func isPermanentSQL(err error) bool {
	var refused *pgconn.PgError
	return errors.As(err, &refused) && strings.HasPrefix(refused.Code, "22")
}

// docs:end sql-permanent

func (sqlBroker) Features() tests.Features {
	return tests.Features{
		ConsumerGroups: true, GuaranteedOrder: true, Persistent: true,
		// With longer names, what PostgreSQL makes of those of tables and sequences, which are created at the same time, is no
		// longer unique.
		GenerateTopicFunc: func(test tests.TestContext) string { return "t" + string(test.TestID)[:8] },
	}
}
