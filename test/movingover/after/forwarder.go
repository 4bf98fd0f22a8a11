package after

import (
	"context"
	"database/sql"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/store/postgres"
)

// RunForwarder relays messages to Kafka until ctx ends.
//
// docs:begin run
func RunForwarder(ctx context.Context, db *sql.DB, store *postgres.Store, publisher message.Publisher) error {
	if err := drainOldTopic(ctx, db, publisher); err != nil { // goes with the old topic
		return err
	}
	fwd, err := outbox.NewForwarder(store, publisher, outbox.WithLogger(logger))
	if err != nil {
		return err
	}
	return fwd.Run(ctx)
}

// docs:end run
