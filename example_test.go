package outbox_test

import (
	"context"
	"database/sql"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/store/sqlite"
)

// placeOrder writes an order and the message about it in one transaction: both are there, or neither is.
func placeOrder(ctx context.Context, db *sql.DB, store *sqlite.Store, orderID string) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() // does nothing after Commit

	if _, err := tx.ExecContext(ctx, "INSERT INTO orders (id) VALUES (?)", orderID); err != nil {
		return err
	}
	msg := message.NewMessage(watermill.NewUUID(), []byte(orderID))
	outbox.SetKey(msg, orderID) // the messages about one order stay in order
	if err := store.Publisher(tx).Publish("orders.placed", msg); err != nil {
		return err
	}
	return tx.Commit()
}

// billOrder handles the message about an order. What it writes commits together with the record that it was handled, so
// each order is billed once, however often its message comes.
func billOrder(store *sqlite.Store, billed chan<- string) message.NoPublishHandlerFunc {
	return func(msg *message.Message) error {
		tx, ok := store.TxFromContext(msg.Context())
		if !ok {
			return outbox.ErrNoTx
		}
		orderID := string(msg.Payload)
		_, err := tx.ExecContext(msg.Context(), "INSERT INTO invoices (order_id) VALUES (?)", orderID)
		if err == nil {
			billed <- orderID
		}
		return err
	}
}

// From an order to its invoice: published in the transaction that writes the order, forwarded to a broker (Go channels
// here), and handled once.
func Example() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "outbox-example-*")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	db, err := sqlite.Open(filepath.Join(dir, "shop.db"))
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()
	_, err = db.ExecContext(ctx, "CREATE TABLE orders (id TEXT); CREATE TABLE invoices (order_id TEXT)")
	if err != nil {
		log.Fatal(err)
	}

	// The outbox: tables beside those of the application.
	store, err := sqlite.New(db)
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
	if err := store.Migrate(ctx); err != nil {
		log.Fatal(err)
	}

	// The Forwarder, which brings messages from the outbox to the broker, runs as long as the router does.
	broker := gochannel.NewGoChannel(gochannel.Config{BlockPublishUntilSubscriberAck: true}, watermill.NopLogger{})
	forwarder, err := outbox.NewForwarder(store, broker)
	if err != nil {
		log.Fatal(err)
	}
	dedup, err := outbox.NewDeduplicator(store.Processed(), "billing")
	if err != nil {
		log.Fatal(err)
	}
	router := message.NewDefaultRouter(watermill.NopLogger{})
	router.AddPlugin(forwarder.RouterPlugin)
	router.AddMiddleware(dedup.Middleware)
	billed := make(chan string)
	router.AddConsumerHandler("bill-order", "orders.placed", broker, billOrder(store, billed))
	go func() {
		if err := router.Run(ctx); err != nil {
			log.Fatal(err)
		}
	}()
	<-router.Running()

	if err := placeOrder(ctx, db, store, "order 42"); err != nil {
		log.Fatal(err)
	}
	fmt.Println("billed", <-billed)

	if err := router.Close(); err != nil {
		log.Fatal(err)
	}
	// Output: billed order 42
}
