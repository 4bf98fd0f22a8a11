package peer

import (
	"context"
	"fmt"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/store/pgxstore"
)

// Ours is this project.
var Ours = Peer{
	Name:  "outbox",
	About: "this project: `pgxstore`, `outbox.NewForwarder(store, publisher)` with its defaults",
	New: func(_ context.Context, env Env) (Outbox, error) {
		store, err := pgxstore.New(env.Pool)
		return &ours{env: env, store: store}, err
	},
}

type ours struct {
	env   Env
	store *pgxstore.Store
}

func (o *ours) Create(ctx context.Context) error {
	if err := o.store.Migrate(ctx); err != nil {
		return err
	}
	_, err := o.env.Pool.Exec(ctx, "TRUNCATE outbox_messages, outbox_archive RESTART IDENTITY")
	return err
}

func (o *ours) Commit(ctx context.Context, msgs ...Message) error {
	return pgx.BeginFunc(ctx, o.env.Pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, InsertOrder, msgs[0].Key); err != nil {
			return err
		}
		return o.store.Publisher(tx).Publish(o.env.Topic, watermillMessages(msgs, outbox.SetKey)...)
	})
}

func (o *ours) Fill(ctx context.Context, backlog Backlog) error {
	_, err := o.env.Pool.Exec(ctx, fmt.Sprintf(`
		INSERT INTO outbox_messages (uuid, topic, key, payload)
		SELECT gen_random_uuid(), $1, %s, convert_to(%s, 'UTF8') FROM generate_series(0, $2::int - 1) i`,
		backlog.keySQL(), backlog.payloadSQL()), o.env.Topic, backlog.N)
	return err
}

func (o *ours) Relay(ctx context.Context, publisher message.Publisher) error {
	f, err := outbox.NewForwarder(o.store, publisher, outbox.WithConcurrency(o.env.Concurrency))
	if err != nil {
		return err
	}
	return f.Run(ctx)
}

func (o *ours) Close() error { return o.store.Close() }

// watermillMessages are what a publisher of Watermill's is given. setKey puts a key where PartitionKey finds it.
func watermillMessages(msgs []Message, setKey func(msg *message.Message, key string)) []*message.Message {
	all := make([]*message.Message, len(msgs))
	for i, m := range msgs {
		all[i] = message.NewMessage(m.UUID, m.Payload)
		setKey(all[i], m.Key)
	}
	return all
}

// keyOf is where the peers have the key, whose rows or envelopes have no place for it.
const keyOf = "key"

func setKey(msg *message.Message, key string) { msg.Metadata.Set(keyOf, key) }

// PartitionKey says which messages go to one partition, for Kafka's marshaler.
func PartitionKey(topic string, msg *message.Message) (string, error) {
	if key := msg.Metadata.Get(keyOf); key != "" {
		return key, nil
	}
	return outbox.PartitionKey(topic, msg)
}

var quiet = watermill.NopLogger{}
