package after

import (
	"context"
	"database/sql"
	_ "embed"
	"errors"
	"time"

	watermillsql "github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/components/forwarder"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"

	"github.com/watermill-outbox/outbox/store/postgres"
)

var (
	//go:embed redirect.sql
	redirect string
	//go:embed drained.sql
	drained string
)

// Migrate creates the outbox's tables and redirects to them what is published the old way. It comes before the first
// instance of this release.
//
// docs:begin migrate
func Migrate(ctx context.Context, db *sql.DB, store *postgres.Store) error {
	if err := store.Migrate(ctx); err != nil {
		return err
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // does nothing after Commit
	if _, err := tx.ExecContext(ctx, redirect); err != nil {
		return err
	}
	return tx.Commit()
}

// docs:end migrate

// drainOldTopic has the old forwarder publish what the old topic still holds. What is in the outbox was published later
// and must wait for that.
//
// docs:begin drain
func drainOldTopic(ctx context.Context, db *sql.DB, publisher message.Publisher) error {
	if done, err := isDrained(ctx, db); err != nil || done {
		return err
	}
	old, err := newForwarder(db, publisher)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- old.Run(ctx) }() // ends with ctx
	for {
		select {
		case err := <-ended:
			return errors.Join(errors.New("the old forwarder ended before its topic was empty"), err, ctx.Err())
		case <-time.After(200 * time.Millisecond):
		}
		if done, err := isDrained(ctx, db); err != nil || done {
			stop()
			return errors.Join(err, <-ended)
		}
	}
}

func isDrained(ctx context.Context, db *sql.DB) (done bool, err error) {
	var redirected bool
	err = db.QueryRowContext(ctx, drained).Scan(&redirected, &done)
	if err == nil && !redirected {
		err = errors.New("the old topic may still be published to: run redirect.sql first")
	}
	return done, err
}

// docs:end drain

// newForwarder is as it was, but for messages without an envelope, which must not hold up the others. They stay in the
// table.
//
// docs:begin forwarder
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
		ForwarderTopic:      "forwarder_topic",
		Middlewares:         []message.HandlerMiddleware{retry.Middleware},
		AckWhenCannotUnwrap: true,
	})
}

// docs:end forwarder
