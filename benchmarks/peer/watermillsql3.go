package peer

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	wmsql "github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
)

// watermill-sql v3 at its default PollInterval, for what people get, and at 5 ms, for what they could get.
var (
	WatermillSQL3     = watermillSQL3Peer("watermill-sql v3", 0)
	WatermillSQL3Fast = watermillSQL3Peer("watermill-sql v3, 5 ms", fastPoll)
)

func watermillSQL3Peer(name string, poll time.Duration) Peer {
	return Peer{
		Name:  name,
		About: aboutForwarding("watermill-sql v3", "DefaultPostgreSQLSchema", defaultSchemaBatch, poll),
		New: func(_ context.Context, env Env) (Outbox, error) {
			return &watermillSQL3{
				forwarding: forwarding{env: env, topic: "forwarder_v3", poll: poll},
				schema:     wmsql.DefaultPostgreSQLSchema{SubscribeBatchSize: defaultSchemaBatch},
			}, nil
		},
	}
}

type watermillSQL3 struct {
	forwarding

	schema  wmsql.DefaultPostgreSQLSchema
	offsets wmsql.DefaultPostgreSQLOffsetsAdapter
}

func (o *watermillSQL3) subscriber() (*wmsql.Subscriber, error) {
	return wmsql.NewSubscriber(o.env.DB, wmsql.SubscriberConfig{
		SchemaAdapter: o.schema, OffsetsAdapter: o.offsets, PollInterval: o.poll, ResendInterval: o.poll,
	}, quiet)
}

func (o *watermillSQL3) Create(ctx context.Context) error {
	subscriber, err := o.subscriber()
	if err != nil {
		return err
	}
	if err := subscriber.SubscribeInitialize(o.topic); err != nil {
		return err
	}
	_, err = o.env.Pool.Exec(ctx, fmt.Sprintf("TRUNCATE %s, %s RESTART IDENTITY",
		o.schema.MessagesTable(o.topic), o.offsets.MessagesOffsetsTable(o.topic)))
	return err
}

func (o *watermillSQL3) Commit(ctx context.Context, msgs ...Message) error {
	tx, err := o.env.DB.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // does nothing once it is committed
	if err := o.insert(ctx, tx, msgs); err != nil {
		return err
	}
	return tx.Commit()
}

func (o *watermillSQL3) insert(ctx context.Context, tx *sql.Tx, msgs []Message) error {
	if _, err := tx.ExecContext(ctx, InsertOrder, msgs[0].Key); err != nil {
		return err
	}
	publisher, err := wmsql.NewPublisher(tx, wmsql.PublisherConfig{SchemaAdapter: o.schema}, quiet)
	if err != nil {
		return err
	}
	return o.publish(publisher, msgs)
}

func (o *watermillSQL3) Fill(ctx context.Context, backlog Backlog) error {
	return o.fill(ctx, o.schema.MessagesTable(o.topic), true, backlog)
}

func (o *watermillSQL3) Relay(ctx context.Context, publisher message.Publisher) error {
	subscriber, err := o.subscriber()
	if err != nil {
		return err
	}
	return o.forward(ctx, subscriber, publisher)
}

func (o *watermillSQL3) Close() error { return nil }
