package embedded

import (
	"context"
	"database/sql"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/store/sqlite"
)

// Ways are all that are compared, this project's first.
var Ways = []Way{Ours, ByHand}

// Ours is this project.
var Ours = Way{
	Name: "outbox",
	About: "this project: `sqlite.New(db)`, `store.Publisher(tx)`, and `outbox.NewForwarder(store, publisher)` with its " +
		"defaults; `synchronous=FULL`, as `sqlite.Open` sets",
	table: "outbox_messages",
	open: func(ctx context.Context, db *sql.DB) (box, error) {
		store, err := sqlite.New(db)
		if err != nil {
			return nil, err
		}
		return &ours{store}, store.Migrate(ctx)
	},
}

type ours struct{ store *sqlite.Store }

func (o *ours) publish(ctx context.Context, tx *sql.Tx, order order) error {
	msg := message.NewMessageWithContext(ctx, order.uuid, order.payload)
	msg.Metadata = order.metadata
	outbox.SetKey(msg, order.key)
	return o.store.Publisher(tx).Publish(topic, msg)
}

func (o *ours) drain(ctx context.Context, publisher message.Publisher) (int, error) {
	f, err := outbox.NewForwarder(o.store, publisher, outbox.WithLogger(watermill.NopLogger{}))
	if err != nil {
		return 0, err
	}
	return f.Drain(ctx)
}

func (o *ours) close() error { return o.store.Close() }
