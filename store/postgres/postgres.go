// Package postgres keeps an outbox in PostgreSQL, version 13 or later, through database/sql and any driver for it, such as
// github.com/jackc/pgx/v5/stdlib and github.com/lib/pq. Any number of processes publish, handle and relay; those that relay
// share the work. With a pgx pool, use package pgxstore.
//
//	db, err := sql.Open("pgx", "postgres://...")
//	store, err := postgres.New(db)
//	err = store.Migrate(ctx)
package postgres

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/internal/pgdialect"
	"github.com/watermill-outbox/outbox/internal/sqlstore"
	"github.com/watermill-outbox/outbox/migrations"
)

// Store is an outbox in PostgreSQL. It implements [outbox.LeasedStore] and all the optional interfaces but
// [outbox.Notifier], and is safe for concurrent use: a Forwarder over it polls, every few milliseconds after activity.
//
// It needs no state of a session, and so works through PgBouncer in transaction mode. Before PgBouncer 1.21 the driver must
// not prepare statements: with pgx, default_query_exec_mode=exec in the address; with lib/pq, binary_parameters=yes.
//
// lib/pq waits for a server that does not answer for as long as TCP does, whatever the context; other instances take over
// meanwhile, and Close waits with it. pgx under database/sql goes by the context.
//
// The server must be the primary, since the relay goes by who holds locks on it.
//
// A transaction, where one is asked for, is a *sql.Tx or what wraps one with ExecContext, QueryContext, Commit and
// Rollback, such as *sqlx.Tx and bun.Tx; where a struct embeds the *sql.Tx, statements go to that one.
//
// Beside the methods below it has those of the interfaces: Save, FetchPending, MarkProcessed, MarkFailed,
// DeleteProcessedBefore; Claim, Settle, Release, Owned, Leads; RunInTx, PauseTopics, CheckSchema; ListFailed, CountFailed,
// Requeue, Discard; Stats, which counts the newest 100,000 pending messages and estimates older ones.
type Store struct {
	*engine
	db             *sql.DB
	schema, prefix string
}

var _ interface {
	outbox.LeasedStore
	outbox.Transactor
	outbox.TopicPauser
	outbox.Leader
	outbox.SchemaChecker
	outbox.Inspector
	outbox.StatsReporter
} = (*Store)(nil)

// What the stores on SQL databases have in common, under names that users do not see.
type (
	engine    = sqlstore.Engine
	processed = sqlstore.Processed
)

// Option configures a [Store].
type Option func(*sqlstore.Options)

// WithSchema says in which schema the tables are, "public" by default, whatever the search_path: at most 30 letters, digits
// and underscores. Migrate goes by it, and does not create it; migrations.Up needs the same schema.
func WithSchema(schema string) Option { return func(o *sqlstore.Options) { o.Schema = schema } }

// WithPrefix puts a prefix before all table names, for several outboxes in one schema: at most 30 letters, digits and
// underscores. Migrate goes by it; migrations.Up needs the same prefix.
func WithPrefix(prefix string) Option { return func(o *sqlstore.Options) { o.Prefix = prefix } }

// WithLeaseTTL sets after what time other instances take over when one that relays has died: 100 ms to 1 h, default 10 s.
// An instance that stops gracefully hands over at once.
func WithLeaseTTL(d time.Duration) Option { return func(o *sqlstore.Options) { o.LeaseTTL = d } }

// WithoutNotify makes publishing not wake the relays that listen, with pgxstore. It is for transactions that end with
// PREPARE TRANSACTION, which PostgreSQL refuses for those that have notified.
func WithoutNotify() Option { return func(o *sqlstore.Options) { o.NoNotify = true } }

// driver is how package migrations calls this database.
const driver = "postgres"

// New returns a Store over db, which stays the caller's to close. It does not use db yet.
func New(db *sql.DB, opts ...Option) (*Store, error) {
	if db == nil {
		return nil, errors.New("postgres: the *sql.DB is nil: open one with sql.Open")
	}
	options := sqlstore.Options{Schema: pgdialect.DefaultSchema}
	for _, opt := range opts {
		if opt == nil {
			return nil, errors.New("postgres: an option is nil")
		}
		opt(&options)
	}
	dialect, err := pgdialect.New("postgres", pgdialect.TextArrays, options)
	if err != nil {
		return nil, err
	}
	s := &Store{db: db, schema: options.Schema, prefix: options.Prefix}
	s.engine, err = sqlstore.New(s, sqlstore.NewSQLDB(db), dialect, options)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Publisher returns a publisher that writes in tx.
func (s *Store) Publisher(tx *sql.Tx, opts ...outbox.PublisherOption) *outbox.Publisher {
	return outbox.PublisherWithTx(s, tx, opts...)
}

// ContextWithTx returns a context by which an [outbox.Publisher] over this store finds tx.
func (s *Store) ContextWithTx(ctx context.Context, tx *sql.Tx) context.Context {
	return outbox.ContextWithTx(ctx, s, tx)
}

// TxFromContext returns the transaction that ctx carries for this store: in a handler under an [outbox.Deduplicator],
// the one that its writes belong in.
func (s *Store) TxFromContext(ctx context.Context) (*sql.Tx, bool) {
	v, _ := outbox.TxFromContext(ctx, s)
	tx, ok := v.(*sql.Tx)
	return tx, ok
}

// InTx calls fn with a transaction, which the ctx of fn carries too. It commits when fn returns nil and rolls back when
// fn returns an error or panics. A cancelled ctx does not roll it back by itself; fn decides.
func (s *Store) InTx(ctx context.Context, fn func(ctx context.Context, tx *sql.Tx) error) error {
	return s.RunInTx(ctx, func(ctx context.Context, tx any) error {
		return fn(ctx, tx.(*sql.Tx)) //nolint:forcetypeassert // the engine's transactions are database/sql's
	})
}

// Migrate creates the tables or brings them up to this release. Any number of processes may call it at the same time.
func (s *Store) Migrate(ctx context.Context) error {
	return migrations.Up(ctx, s.db, driver, migrations.WithSchema(s.schema), migrations.WithPrefix(s.prefix))
}

// Close releases claims and leases. It does not close the *sql.DB, and publishing goes on working.
func (s *Store) Close() error { return s.engine.Close() }

// Processed is the record of handled messages, an [outbox.ProcessedStore] and [outbox.Transactor]. It is safe for
// concurrent use.
type Processed struct {
	*processed
	store *Store
}

// Processed returns the store's record of handled messages, for [outbox.NewDeduplicator].
func (s *Store) Processed() *Processed { return &Processed{processed: s.engine.Processed(), store: s} }

// NewProcessedStore returns the record of handled messages of the outbox in db, for a service that only consumes. Its
// tables are the outbox's; Migrate makes them.
func NewProcessedStore(db *sql.DB, opts ...Option) (*Processed, error) {
	s, err := New(db, opts...)
	if err != nil {
		return nil, err
	}
	return s.Processed(), nil
}

// TxFromContext returns the transaction that a handler under an [outbox.Deduplicator] writes in.
func (p *Processed) TxFromContext(ctx context.Context) (*sql.Tx, bool) {
	return p.store.TxFromContext(ctx)
}

// Migrate is [Store.Migrate].
func (p *Processed) Migrate(ctx context.Context) error { return p.store.Migrate(ctx) }

// Close is [Store.Close].
func (p *Processed) Close() error { return p.store.Close() }
