package migrations_test

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"os"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib"
	_ "github.com/lib/pq"
	_ "github.com/mattn/go-sqlite3"
	"go.uber.org/goleak"

	"github.com/watermill-outbox/outbox/migrations"
)

// childDSN is set in the environment of processes that the tests start from their own binary.
const childDSN = "OUTBOX_MIGRATIONS_TEST_DSN"

func TestMain(m *testing.M) {
	if dsn := os.Getenv(childDSN); dsn != "" {
		if err := migrateWhenTold(dsn); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// migrateWhenTold says that it is ready and migrates as soon as its standard input is closed, so that all children
// begin together.
func migrateWhenTold(dsn string) error {
	db, err := sql.Open("sqlite3", dsn)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(os.Stdout, "ready"); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	if err := migrations.Up(context.Background(), db, "sqlite3"); err != nil {
		return err
	}
	return db.Close()
}
