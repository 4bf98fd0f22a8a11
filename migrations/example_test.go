package migrations_test

import (
	"context"
	"database/sql"
	"fmt"
	"log"
	"strings"

	"github.com/watermill-outbox/outbox/migrations"
)

func ExampleUp() {
	ctx := context.Background()
	db, err := sql.Open("sqlite3", "file:example?mode=memory&cache=shared")
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = db.Close() }()

	// At the start of every instance: whoever comes first does the work.
	if err := migrations.Up(ctx, db, "sqlite3"); err != nil {
		log.Fatal(err)
	}
	version, err := migrations.Version(ctx, db, "sqlite3")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("version", version)
	// Output: version 1
}

func ExampleDown() {
	ctx := context.Background()
	db, err := sql.Open("sqlite3", "file:example_down?mode=memory&cache=shared")
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = db.Close() }()

	if err := migrations.Up(ctx, db, "sqlite3"); err != nil {
		log.Fatal(err)
	}
	// All messages are gone after this.
	if err := migrations.Down(ctx, db, "sqlite3"); err != nil {
		log.Fatal(err)
	}
	version, err := migrations.Version(ctx, db, "sqlite3")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("version", version)
	// Output: version 0
}

// Two outboxes in one database.
func ExampleWithPrefix() {
	ctx := context.Background()
	db, err := sql.Open("sqlite3", "file:example_prefix?mode=memory&cache=shared")
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = db.Close() }()

	for _, prefix := range []string{"billing_", "shipping_"} {
		if err := migrations.Up(ctx, db, "sqlite3", migrations.WithPrefix(prefix)); err != nil {
			log.Fatal(err)
		}
	}
	var tables int
	err = db.QueryRowContext(ctx, "SELECT count(*) FROM sqlite_master WHERE name LIKE '%outbox_messages'").Scan(&tables)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(tables, "tables of messages")
	// Output: 2 tables of messages
}

// PostgreSQL's tables in a schema of their own.
func ExampleWithSchema() {
	down, err := migrations.SQL("pgx", 1, 0, migrations.WithSchema("messaging"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Print(down)
	// Output:
	// -- Indexes go with their tables.
	// DROP TABLE IF EXISTS "messaging"."outbox_processed";
	// DROP TABLE IF EXISTS "messaging"."outbox_relays";
	// DROP TABLE IF EXISTS "messaging"."outbox_slots";
	// DROP TABLE IF EXISTS "messaging"."outbox_archive";
	// DROP TABLE IF EXISTS "messaging"."outbox_messages";
}

// For flyway: one file for each version, written once and committed.
func ExampleSQL() {
	up, err := migrations.SQL("sqlite3", 0, 1, migrations.WithPrefix("billing_"))
	if err != nil {
		log.Fatal(err)
	}
	for line := range strings.Lines(up) {
		if strings.HasPrefix(line, "CREATE TABLE") {
			fmt.Print(line)
		}
	}

	down, err := migrations.SQL("sqlite3", 1, 0, migrations.WithPrefix("billing_"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Print(down)
	// Output:
	// CREATE TABLE "billing_outbox_messages" (
	// CREATE TABLE "billing_outbox_archive" (
	// CREATE TABLE "billing_outbox_slots" (
	// CREATE TABLE "billing_outbox_processed" (
	// -- Indexes go with their tables.
	// DROP TABLE IF EXISTS "billing_outbox_processed";
	// DROP TABLE IF EXISTS "billing_outbox_slots";
	// DROP TABLE IF EXISTS "billing_outbox_archive";
	// DROP TABLE IF EXISTS "billing_outbox_messages";
}
