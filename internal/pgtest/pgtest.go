// Package pgtest tells tests where the PostgreSQL servers are that services/services has started, and gives each test a
// schema of its own.
package pgtest

import (
	"context"
	"crypto/rand"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

// Server is a server that tests run against.
type Server struct {
	Name string
	// env names the variable that has the URL of a server to use instead.
	env string
	url string
}

var (
	// V15 is PostgreSQL 15.
	V15 = Server{Name: "15", env: "WATERMILL_TEST_POSTGRES_URL", url: "postgres://postgres@127.0.0.1:25432/postgres"}
	// V18 is PostgreSQL 18.
	V18 = Server{Name: "18", env: "WATERMILL_TEST_POSTGRES18_URL", url: "postgres://postgres@127.0.0.1:25418/postgres"}
	// PgBouncer is PgBouncer 1.18 before V15, in transaction mode: it knows no prepared statements.
	PgBouncer = Server{Name: "pgbouncer", env: "WATERMILL_TEST_PGBOUNCER_URL", url: "postgres://postgres@127.0.0.1:26432/postgres"}
)

// URL returns the server's address, without parameters.
func (s Server) URL() string {
	if url := os.Getenv(s.env); url != "" {
		return url
	}
	return s.url
}

// DirectURL returns the address of the server behind PgBouncer, and URL for all others.
func (s Server) DirectURL() string {
	if s == PgBouncer {
		return V15.URL()
	}
	return s.URL()
}

// Schema creates a schema that is dropped when the test ends.
func Schema(tb testing.TB, s Server) string {
	tb.Helper()
	name := "test_" + strings.ToLower(rand.Text()[:16])
	Exec(tb, s, "CREATE SCHEMA "+name)
	tb.Cleanup(func() { Exec(tb, s, "DROP SCHEMA "+name+" CASCADE") })
	return name
}

// Exec runs a statement on a connection of its own.
func Exec(tb testing.TB, s Server, query string, args ...any) {
	tb.Helper()
	ctx := context.Background() // also in a clean-up
	conn, err := pgx.Connect(ctx, s.DirectURL())
	if err != nil {
		tb.Fatalf("no PostgreSQL %s: run `make services`, or name a server in %s: %v", s.Name, s.env, err)
	}
	defer conn.Close(ctx) //nolint:errcheck // the statement has told
	if _, err := conn.Exec(ctx, query, args...); err != nil {
		tb.Fatalf("%s: %v", query, err)
	}
}
