package before

import (
	"context"
	"database/sql"
	"time"

	watermillsql "github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/components/forwarder"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"
)

// forwarderTopic is forwarder's default.
const forwarderTopic = "forwarder_topic"

// RunForwarder relays messages to Kafka until ctx ends.
//
// docs:begin run
func RunForwarder(ctx context.Context, db *sql.DB, publisher message.Publisher) error {
	fwd, err := newForwarder(db, publisher)
	if err != nil {
		return err
	}
	return fwd.Run(ctx)
}

// docs:end run

func newForwarder(db *sql.DB, publisher message.Publisher) (*forwarder.Forwarder, error) {
	subscriber, err := watermillsql.NewSubscriber(db, watermillsql.SubscriberConfig{
		SchemaAdapter:    watermillsql.DefaultPostgreSQLSchema{},
		OffsetsAdapter:   watermillsql.DefaultPostgreSQLOffsetsAdapter{},
		InitializeSchema: true,
	}, logger)
	if err != nil {
		return nil, err
	}
	retry := middleware.Retry{
		MaxRetries: 3, InitialInterval: 100 * time.Millisecond, Multiplier: 2, MaxInterval: time.Second,
	}
	return forwarder.NewForwarder(subscriber, publisher, logger, forwarder.Config{
		ForwarderTopic: forwarderTopic,
		Middlewares:    []message.HandlerMiddleware{retry.Middleware},
	})
}
