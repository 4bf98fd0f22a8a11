package sqlite_test

import (
	"context"
	"database/sql"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/store/sqlite"
)

func ExampleOpen() {
	dir, err := os.MkdirTemp("", "outbox-example-*")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	// All parameters of go-sqlite3 may follow; those that the outbox needs are there already.
	db, err := sqlite.Open(filepath.Join(dir, "app.db") + "?_foreign_keys=true")
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()

	var journal string
	if err := db.QueryRow("PRAGMA journal_mode").Scan(&journal); err != nil {
		log.Fatal(err)
	}
	fmt.Println(journal)
	// Output: wal
}

// exampleDB opens a new database, and returns what removes it.
func exampleDB() (db *sql.DB, remove func()) {
	dir, err := os.MkdirTemp("", "outbox-example-*")
	if err != nil {
		log.Fatal(err)
	}
	db, err = sqlite.Open(filepath.Join(dir, "app.db"))
	if err != nil {
		log.Fatal(err)
	}
	return db, func() {
		db.Close()
		os.RemoveAll(dir)
	}
}

// exampleStore returns a store over a new database, and what removes both.
func exampleStore() (*sqlite.Store, *sql.DB, func()) {
	db, removeDB := exampleDB()
	store, err := sqlite.New(db)
	if err != nil {
		log.Fatal(err)
	}
	if err := store.Migrate(context.Background()); err != nil {
		log.Fatal(err)
	}
	return store, db, func() {
		store.Close()
		removeDB()
	}
}

// printPending shows what is in the outbox.
func printPending(store *sqlite.Store) {
	msgs, err := store.Pending(context.Background(), nil, 100)
	if err != nil {
		log.Fatal(err)
	}
	for _, m := range msgs {
		fmt.Fprintf(os.Stdout, "%s: %s\n", m.Topic, m.Payload)
	}
}

// The tables of the outbox stand beside those of the application, in the same database.
func ExampleNew() {
	ctx := context.Background()
	db, remove := exampleDB() // sqlite.Open("app.db")
	defer remove()

	store, err := sqlite.New(db)
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close() // does not close db
	if err := store.Migrate(ctx); err != nil {
		log.Fatal(err)
	}

	stats, err := store.Stats(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("pending:", stats.Pending)
	// Output: pending: 0
}

// Every process may call it when it starts. To apply the SQL with a tool of your own, see package migrations.
func ExampleStore_Migrate() {
	ctx := context.Background()
	db, remove := exampleDB()
	defer remove()
	store, err := sqlite.New(db)
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()

	for range 2 {
		if err := store.Migrate(ctx); err != nil {
			log.Fatal(err)
		}
	}
	// Output:
}

// The order and the message about it are there together, or not at all.
func ExampleStore_Publisher() {
	ctx := context.Background()
	store, db, remove := exampleStore()
	defer remove()
	if _, err := db.ExecContext(ctx, "CREATE TABLE orders (id INTEGER)"); err != nil {
		log.Fatal(err)
	}

	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer tx.Rollback() // does nothing after Commit
	if _, err := tx.ExecContext(ctx, "INSERT INTO orders (id) VALUES (42)"); err != nil {
		log.Fatal(err)
	}
	msg := message.NewMessage(watermill.NewUUID(), []byte("order 42"))
	if err := store.Publisher(tx).Publish("orders.placed", msg); err != nil {
		log.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		log.Fatal(err)
	}

	printPending(store)
	// Output: orders.placed: order 42
}

// InTx begins and commits, or rolls back if the function returns an error. Its context carries the transaction to code
// that knows only message.Publisher, and to TxFromContext.
func ExampleStore_InTx() {
	ctx := context.Background()
	store, db, remove := exampleStore()
	defer remove()
	if _, err := db.ExecContext(ctx, "CREATE TABLE orders (id INTEGER)"); err != nil {
		log.Fatal(err)
	}
	publisher, err := outbox.NewPublisher(store)
	if err != nil {
		log.Fatal(err)
	}

	err = store.InTx(ctx, func(ctx context.Context, tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, "INSERT INTO orders (id) VALUES (42)"); err != nil {
			return err
		}
		msg := message.NewMessageWithContext(ctx, watermill.NewUUID(), []byte("order 42"))
		return publisher.Publish("orders.placed", msg)
	})
	if err != nil {
		log.Fatal(err)
	}

	printPending(store)
	// Output: orders.placed: order 42
}

// For a transaction that was begun elsewhere.
func ExampleStore_ContextWithTx() {
	ctx := context.Background()
	store, db, remove := exampleStore()
	defer remove()
	publisher, err := outbox.NewPublisher(store)
	if err != nil {
		log.Fatal(err)
	}

	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer tx.Rollback() // does nothing after Commit
	ctx = store.ContextWithTx(ctx, tx)
	msg := message.NewMessageWithContext(ctx, watermill.NewUUID(), []byte("order 42"))
	if err := publisher.Publish("orders.placed", msg); err != nil {
		log.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		log.Fatal(err)
	}

	printPending(store)
	// Output: orders.placed: order 42
}

// A repository writes in the transaction that its caller has begun.
func ExampleStore_TxFromContext() {
	ctx := context.Background()
	store, db, remove := exampleStore()
	defer remove()
	if _, err := db.ExecContext(ctx, "CREATE TABLE orders (id INTEGER)"); err != nil {
		log.Fatal(err)
	}

	insertOrder := func(ctx context.Context, id int) error {
		tx, ok := store.TxFromContext(ctx)
		if !ok {
			return outbox.ErrNoTx
		}
		_, err := tx.ExecContext(ctx, "INSERT INTO orders (id) VALUES (?)", id)
		return err
	}
	err := store.InTx(ctx, func(ctx context.Context, _ *sql.Tx) error { return insertOrder(ctx, 42) })
	if err != nil {
		log.Fatal(err)
	}

	var orders int
	if err := db.QueryRowContext(ctx, "SELECT count(*) FROM orders").Scan(&orders); err != nil {
		log.Fatal(err)
	}
	fmt.Println("orders:", orders)
	// Output: orders: 1
}

// Two services share a database, and each has an outbox of its own.
func ExampleWithPrefix() {
	ctx := context.Background()
	db, remove := exampleDB()
	defer remove()
	for _, prefix := range []string{"billing_", "shipping_"} {
		store, err := sqlite.New(db, sqlite.WithPrefix(prefix))
		if err != nil {
			log.Fatal(err)
		}
		defer store.Close()
		if err := store.Migrate(ctx); err != nil {
			log.Fatal(err)
		}
	}

	const query = "SELECT name FROM sqlite_master WHERE name LIKE '%_outbox_messages' ORDER BY name"
	rows, err := db.QueryContext(ctx, query)
	if err != nil {
		log.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var table string
		if err := rows.Scan(&table); err != nil {
			log.Fatal(err)
		}
		fmt.Println(table)
	}
	if err := rows.Err(); err != nil {
		log.Fatal(err)
	}
	// Output:
	// billing_outbox_messages
	// shipping_outbox_messages
}

// A service that handles messages and publishes none.
func ExampleNewProcessedStore() {
	ctx := context.Background()
	db, remove := exampleDB()
	defer remove()
	processed, err := sqlite.NewProcessedStore(db)
	if err != nil {
		log.Fatal(err)
	}
	defer processed.Close()
	if err := processed.Migrate(ctx); err != nil {
		log.Fatal(err)
	}
	dedup, err := outbox.NewDeduplicator(processed, "billing")
	if err != nil {
		log.Fatal(err)
	}
	handler := dedup.Middleware(func(msg *message.Message) ([]*message.Message, error) {
		tx, ok := processed.TxFromContext(msg.Context()) // for the writes of the handler
		if !ok {
			return nil, outbox.ErrNoTx
		}
		_, err := tx.ExecContext(msg.Context(), "SELECT 'billed'")
		fmt.Println("billed", string(msg.Payload))
		return nil, err
	})
	msg := message.NewMessage(watermill.NewUUID(), []byte("order 42"))
	for range 2 { // the broker delivers it again
		if _, err := handler(msg); err != nil {
			log.Fatal(err)
		}
	}
	// Output: billed order 42
}
