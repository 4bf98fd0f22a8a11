// Command cqrs sends commands and publishes events of Watermill's CQRS component through the outbox: the buses write to
// the database, in the transaction that the context carries, and every message is handled once although each is
// delivered twice.
//
//	go run ./examples/cqrs
package main

import (
	"context"
	"database/sql"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/components/cqrs"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/store/sqlite"
)

//go:embed schema.sql
var schema string

func main() {
	if err := run(context.Background(), os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "cqrs:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer) error {
	dir, err := os.MkdirTemp("", "outbox-cqrs-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a temporary folder
	db, err := sqlite.Open(filepath.Join(dir, "cqrs.db"))
	if err != nil {
		return err
	}
	defer db.Close() //nolint:errcheck // everything is committed
	store, err := sqlite.New(db)
	if err != nil {
		return err
	}
	defer store.Close() //nolint:errcheck // the Forwarder has given up its lease
	if err := store.Migrate(ctx); err != nil {
		return err
	}
	if _, err := db.ExecContext(ctx, schema); err != nil {
		return err
	}
	buses, err := newBuses(store)
	if err != nil {
		return err
	}
	if err := requestOrders(ctx, store, buses.commands); err != nil {
		return err
	}
	var absorbed atomic.Int64
	observer := outbox.ObserverFunc(func(_ context.Context, event outbox.Event) {
		if _, ok := event.(outbox.DeduplicatedEvent); ok {
			absorbed.Add(1)
		}
	})
	if err := relay(ctx, store, buses.events, observer); err != nil {
		return err
	}
	if err := report(ctx, db, out); err != nil {
		return err
	}
	_, err = fmt.Fprintln(out, absorbed.Load(), "redeliveries absorbed")
	return err
}

// requestOrders takes three orders, and a fourth whose transaction fails.
func requestOrders(ctx context.Context, store *sqlite.Store, commands *cqrs.CommandBus) error {
	orders := []PlaceOrder{{"order-1", 10}, {"order-2", 20}, {"order-3", 30}, {"order-4", 40}}
	for _, order := range orders {
		err := store.InTx(ctx, func(ctx context.Context, tx *sql.Tx) error {
			const insert = `INSERT INTO requests (order_id) VALUES (?)`
			if _, err := tx.ExecContext(ctx, insert, order.OrderID); err != nil {
				return err
			}
			// This ctx carries the transaction; with a tx of your own, store.ContextWithTx(ctx, tx) makes one.
			if err := commands.Send(ctx, order); err != nil {
				return err
			}
			if order.OrderID == "order-4" {
				return errCreditCard
			}
			return nil
		})
		if err != nil && !errors.Is(err, errCreditCard) {
			return err
		}
	}
	return nil
}

var errCreditCard = errors.New("the credit card was refused")

// relay forwards all messages and has them handled, those included that the handlers publish.
func relay(ctx context.Context, store *sqlite.Store, events *cqrs.EventBus, observer outbox.Observer) error {
	logger := watermill.NopLogger{}
	broker := gochannel.NewGoChannel(gochannel.Config{BlockPublishUntilSubscriberAck: true}, logger)
	router, err := newRouter(store, broker, events, observer, logger)
	if err != nil {
		return err
	}
	forwarder, err := outbox.NewForwarder(store, broker, outbox.WithLogger(logger))
	if err != nil {
		return err
	}
	routerEnded := make(chan error, 1)
	go func() { routerEnded <- router.Run(context.WithoutCancel(ctx)) }() // ends with Close
	select {
	case <-router.Running(): // Go channels drop messages that have no subscriber
	case err := <-routerEnded:
		return fmt.Errorf("start the router: %w", err)
	}
	_, err = forwarder.Drain(ctx) // a service calls Run, which waits for more
	return errors.Join(err, router.Close(), <-routerEnded)
}

func newRouter(
	store *sqlite.Store, broker message.Subscriber, events *cqrs.EventBus, observer outbox.Observer,
	logger watermill.LoggerAdapter,
) (*message.Router, error) {
	router, err := message.NewRouter(message.RouterConfig{}, logger)
	if err != nil {
		return nil, err
	}
	dedup, err := outbox.NewDeduplicator(store.Processed(), "shop",
		outbox.WithObserver(observer), outbox.WithLogger(logger))
	if err != nil {
		return nil, err
	}
	router.AddMiddleware(
		middleware.Retry{MaxRetries: 5, ResetContextOnRetry: true, Logger: logger}.Middleware,
		middleware.Recoverer,
		middleware.Duplicator, // each message comes twice, for the sake of this example
		dedup.Middleware,
	)
	if err := addHandlers(router, store, broker, events, logger); err != nil {
		return nil, err
	}
	return router, nil
}
