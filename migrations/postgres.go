package migrations

import (
	"errors"

	"github.com/pressly/goose/v3"

	"github.com/watermill-outbox/outbox/internal/sqlname"
)

// Statements outside of a transaction have no parameters: lib/pq would send those in two steps, between which PgBouncer
// may change the server.
var postgres = dialect{
	database:      "PostgreSQL",
	drivers:       []string{"postgres", "pgx", "pgx/v5"},
	goose:         goose.DialectPostgres,
	quote:         '"',
	folder:        "postgres",
	defaultSchema: "public",
	// count is for any type: one for this type would be called, if somebody had it in a schema of the search_path.
	tableExists: func(names sqlname.Names, table string) (string, []any) {
		return names.Render("SELECT pg_catalog.count(to_regclass($$" + table + "$$))"), nil
	},
	// Whoever waits for a table's lock holds up all who come for the table after him, publishers too, so the wait is
	// short and repeated. LOCAL, since PgBouncer gives the connection to others.
	lockTimeout: "SET LOCAL lock_timeout = '1s';\n",
	// The lock that DROP takes. Two transactions that get there by way of a weaker one would wait for each other.
	lock:   "LOCK TABLE outbox_version",
	isBusy: func(err error) bool { return postgresBusy[sqlState(err)] },
	advice: func(err error) string { return postgresAdvice[sqlState(err)] },
}

// By SQLSTATE: texts come in the language of the server. https://www.postgresql.org/docs/current/errcodes-appendix.html
var (
	postgresBusy = map[string]bool{
		lockNotAvailable: true,
		"40P01":          true, // deadlock_detected
		"40001":          true, // serialization_failure, where the user has made that the default isolation
	}
	postgresAdvice = map[string]string{
		// invalid_schema_name
		"3F000": "create the schema first, or name one that exists with migrations.WithSchema",
		// insufficient_privilege
		"42501": "GRANT USAGE, CREATE ON SCHEMA to the role of this connection, name another schema with " +
			"migrations.WithSchema, or migrate as the role that owns the tables",
		// read_only_sql_transaction
		"25006":          "connect to the primary server, as a role that may write",
		lockNotAvailable: "stop what uses the tables, or end its transactions, and try again",
		// duplicate_prepared_statement, invalid_sql_statement_name
		"42P05": pgBouncerAdvice,
		"26000": pgBouncerAdvice,
	}
)

const (
	lockNotAvailable = "55P03" // after lock_timeout
	pgBouncerAdvice  = "behind PgBouncer in transaction mode, open the database with default_query_exec_mode=exec (pgx) " +
		"or binary_parameters=yes (lib/pq)"
)

// sqlState returns the SQLSTATE of an error of pgx or lib/pq, which have the same method for it.
func sqlState(err error) string {
	var withState interface{ SQLState() string }
	if errors.As(err, &withState) {
		return withState.SQLState()
	}
	return ""
}
