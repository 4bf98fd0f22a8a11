// Package migrations creates, upgrades and removes the tables of an outbox, and shows the SQL that does so for those
// who apply it with a tool of their own.
//
// A database is at version 0 before the first migration and at the number of the last applied one after it. The number
// is kept in a table <prefix>outbox_version, apart from any other migrations of the application, goose's included.
//
// All functions are safe for concurrent use, by goroutines and by processes.
package migrations

import (
	"context"
	"database/sql"
	"fmt"
)

// Option says which outbox of a database is meant, where the default, tables called outbox_..., will not do.
type Option func(*options)

type options struct {
	schema string
	prefix string
}

// WithPrefix puts prefix before the name of every table and index: "billing_" makes it billing_outbox_messages. Several
// outboxes with different prefixes live side by side in one database. It is at most 30 letters, digits and underscores
// and does not begin with a digit; everything else is an error of the call that it is given to. The default is none.
// PostgreSQL tells Billing_ from billing_, SQLite does not.
func WithPrefix(prefix string) Option {
	return func(o *options) { o.prefix = prefix }
}

// WithSchema puts the tables into a schema of PostgreSQL, which must exist. The bounds are those of [WithPrefix]. The
// default is "public", whatever search_path says. SQLite has no schemas, so there it is an error.
func WithSchema(schema string) Option {
	return func(o *options) { o.schema = schema }
}

// Up brings the tables to the latest version that this release knows. Where they are there already, or at the version
// of a newer release, it only reads and returns nil.
//
// driverName says which database db is, by the name its driver is registered under: "sqlite3" or "sqlite"; "postgres"
// (lib/pq), "pgx" or "pgx/v5", for PostgreSQL 13 and later. Any other is an error that lists the known ones.
//
// Any number of processes may call Up at once, as replicas of a service do when they start: each migration is applied
// once, and all calls return nil. Up waits while others lock the database, and gives up when that has lasted for about
// 30 seconds, or when ctx ends. On PostgreSQL it stands in the way of those who use a table it waits for, for a second at
// a time. A migration is applied whole or not at all, so a call that failed may be made again.
//
// PgBouncer in transaction mode will do, if db was opened for it: with pgx that is default_query_exec_mode=exec or
// simple_protocol.
func Up(ctx context.Context, db *sql.DB, driverName string, opts ...Option) error {
	m, err := newMigrator(db, driverName, opts)
	if err != nil {
		return err
	}
	if err := m.up(ctx); err != nil {
		return fmt.Errorf("outbox: migrate up: %w", m.dialect.advise(err))
	}
	return nil
}

// Down drops all tables of the outbox with everything in them, and the version table, so that nothing is left. It
// DELETES ALL DATA: messages that were not published yet, messages that were set aside, and the memory of what
// consumers have handled. Where [Up] has made nothing it does nothing; tables made with what [SQL] returned stay.
//
// Stop whatever uses the outbox first: new tables give the old ids again, and a running relay would not look at them.
// Up and Down at the same time may fail, though never halfway. An outbox that a newer release has migrated is left as
// it is, with an error, since only that release knows the way down. For driverName, and how long Down waits for locks,
// see [Up].
func Down(ctx context.Context, db *sql.DB, driverName string, opts ...Option) error {
	m, err := newMigrator(db, driverName, opts)
	if err != nil {
		return err
	}
	if err := m.down(ctx); err != nil {
		return fmt.Errorf("outbox: migrate down: %w", m.dialect.advise(err))
	}
	return nil
}

// Version returns the number of the last migration that [Up] has applied: 0 if there was none. It only reads. Tables
// that were made with what [SQL] returned have no version here; the tool that made them knows it. For driverName see
// [Up].
func Version(ctx context.Context, db *sql.DB, driverName string, opts ...Option) (int64, error) {
	m, err := newMigrator(db, driverName, opts)
	if err != nil {
		return 0, err
	}
	version, err := m.version(ctx)
	if err != nil {
		return 0, fmt.Errorf("outbox: read the version of the schema: %w", m.dialect.advise(err))
	}
	return max(version, 0), nil
}

// SQL returns the statements that lead from one version to another, up or down, for atlas, flyway, psql, sqlite3 or any
// other tool, with the names of the tables as opts say. Both versions lie between 0, where there is nothing, and the
// latest one; the error for any other names that range. From a version to itself there are no statements.
//
// A released migration never changes, so the result for two given versions may be kept in a repository, a file for each
// step. Statements that lead down delete data.
//
// There is no BEGIN or COMMIT, since most tools add their own; run the whole in one transaction where the database can.
// The version table is not part of it: go on with the tool, and do not call [Up] for the same tables. For driverName
// see [Up].
func SQL(driverName string, from, to int64, opts ...Option) (string, error) {
	s, err := newSchema(driverName, opts)
	if err != nil {
		return "", err
	}
	return s.sql(from, to)
}
