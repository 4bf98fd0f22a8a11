package peer

import (
	"context"
	"fmt"
	"strings"
	"time"

	wmsql "github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
)

// watermill-sql v4 in both schemas, each at its default PollInterval, for what people get, and at 5 ms, for what they
// could get. It runs over pgx itself, by its adapters, which costs the caller less than database/sql.
var (
	WatermillSQL4          = watermillSQL4Peer("watermill-sql v4", defaultSchema4, 0)
	WatermillSQL4Fast      = watermillSQL4Peer("watermill-sql v4, 5 ms", defaultSchema4, fastPoll)
	WatermillSQL4Queue     = watermillSQL4Peer("watermill-sql v4, queue", queueSchema4, 0)
	WatermillSQL4QueueFast = watermillSQL4Peer("watermill-sql v4, queue, 5 ms", queueSchema4, fastPoll)
)

func watermillSQL4Peer(name string, schema schema4, poll time.Duration) Peer {
	return Peer{
		Name:  name,
		About: aboutForwarding("watermill-sql v4 over pgx", schema.about, schema.batch, poll),
		New: func(_ context.Context, env Env) (Outbox, error) {
			return &watermillSQL4{forwarding: forwarding{env: env, topic: schema.topic, poll: poll}, schema: schema}, nil
		},
	}
}

// schema4 is one of the two schemas of v4.
type schema4 struct {
	about       string
	topic       string
	batch       int
	messages    wmsql.SchemaAdapter
	offsets     wmsql.OffsetsAdapter
	ackDeadline *time.Duration // nil is watermill-sql's default
	tables      []string       // what its adapters create for the topic, that of messages first
}

var defaultSchema4 = schema4{
	about:    "DefaultPostgreSQLSchema",
	topic:    "forwarder_v4",
	batch:    defaultSchemaBatch,
	messages: wmsql.DefaultPostgreSQLSchema{SubscribeBatchSize: defaultSchemaBatch},
	offsets:  wmsql.DefaultPostgreSQLOffsetsAdapter{},
	tables:   []string{"watermill_forwarder_v4", "watermill_offsets_forwarder_v4"},
}

var queueSchema4 = schema4{
	about:    "PostgreSQLQueueSchema, DeleteOnAck, no AckDeadline",
	topic:    "forwarder_v4_queue",
	batch:    queueSchemaBatch,
	messages: wmsql.PostgreSQLQueueSchema{SubscribeBatchSize: queueSchemaBatch},
	offsets:  wmsql.PostgreSQLQueueOffsetsAdapter{DeleteOnAck: true},
	// A deadline that passes within a batch deletes all of it, v4.1.2, so that messages are lost which were not published.
	ackDeadline: new(time.Duration),
	tables:      []string{"watermill_forwarder_v4_queue"},
}

type watermillSQL4 struct {
	forwarding

	schema schema4
}

func (o *watermillSQL4) subscriber() (*wmsql.Subscriber, error) {
	return wmsql.NewSubscriber(wmsql.BeginnerFromPgx(o.env.Pool), wmsql.SubscriberConfig{
		SchemaAdapter: o.schema.messages, OffsetsAdapter: o.schema.offsets, AckDeadline: o.schema.ackDeadline,
		PollInterval: o.poll, ResendInterval: o.poll,
	}, quiet)
}

func (o *watermillSQL4) Create(ctx context.Context) error {
	subscriber, err := o.subscriber()
	if err != nil {
		return err
	}
	if err := subscriber.SubscribeInitialize(o.topic); err != nil {
		return err
	}
	_, err = o.env.Pool.Exec(ctx, fmt.Sprintf("TRUNCATE %s RESTART IDENTITY", strings.Join(o.schema.tables, ", ")))
	return err
}

func (o *watermillSQL4) Commit(ctx context.Context, msgs ...Message) error {
	return pgx.BeginFunc(ctx, o.env.Pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, InsertOrder, msgs[0].Key); err != nil {
			return err
		}
		publisher, err := wmsql.NewPublisher(wmsql.TxFromPgx(tx), wmsql.PublisherConfig{SchemaAdapter: o.schema.messages}, quiet)
		if err != nil {
			return err
		}
		return o.publish(publisher, msgs)
	})
}

func (o *watermillSQL4) Fill(ctx context.Context, backlog Backlog) error {
	return o.fill(ctx, o.schema.tables[0], len(o.schema.tables) > 1, backlog)
}

func (o *watermillSQL4) Relay(ctx context.Context, publisher message.Publisher) error {
	subscriber, err := o.subscriber()
	if err != nil {
		return err
	}
	return o.forward(ctx, subscriber, publisher)
}

func (o *watermillSQL4) Close() error { return nil }
