// Package pgxstore keeps an outbox in PostgreSQL, version 13 or later, through a pool of github.com/jackc/pgx/v5. Any number
// of processes publish, handle and relay; those that relay share the work, and are woken by LISTEN and NOTIFY where that
// gets through.
//
//	pool, err := pgxpool.New(ctx, "postgres://...")
//	store, err := pgxstore.New(pool)
//	err = store.Migrate(ctx)
package pgxstore

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/internal/pgdialect"
	"github.com/watermill-outbox/outbox/internal/sqlstore"
	"github.com/watermill-outbox/outbox/migrations"
)

// Store is an outbox in PostgreSQL. It implements [outbox.LeasedStore] and all the optional interfaces, and is safe for
// concurrent use.
//
// It needs no state of a session, and so works through PgBouncer in transaction mode; there nobody can listen, and the
// Forwarder polls. Before PgBouncer 1.21 pgx must not prepare statements: default_query_exec_mode=exec in the address.
//
// The server must be the primary, since the relay goes by who holds locks on it.
//
// A transaction, where one is asked for, is a pgx.Tx, nested ones included.
//
// Beside the methods below it has those of the interfaces: Save, FetchPending, MarkProcessed, MarkFailed,
// DeleteProcessedBefore; Claim, Settle, Release, Owned, Leads; RunInTx, Notify, PauseTopics, CheckSchema; ListFailed, CountFailed,
// Requeue, Discard; Stats, which counts the newest 100,000 pending messages and estimates older ones.
type Store struct {
	*engine
	pool           *pgxpool.Pool
	schema, prefix string
	channel        string // empty for none
}

var _ interface {
	outbox.LeasedStore
	outbox.Transactor
	outbox.Notifier
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

// WithoutNotify makes publishing not wake the relays, and relays not listen: they poll. It is for transactions that end
// with PREPARE TRANSACTION, which PostgreSQL refuses for those that have notified, and saves the connection to listen on.
func WithoutNotify() Option { return func(o *sqlstore.Options) { o.NoNotify = true } }

// driver is how package migrations calls this database.
const driver = "pgx"

// New returns a Store over pool, which stays the caller's to close. It does not use it yet.
//
// A Forwarder reads, marks and renews its leases through the pool, with up to five connections at a time. Where requests may
// take them all for seconds, give the Forwarder a store over a pool of its own: both stores are the same outbox, and Publisher
// takes a transaction of either.
func New(pool *pgxpool.Pool, opts ...Option) (*Store, error) {
	if pool == nil {
		return nil, errors.New("pgxstore: the *pgxpool.Pool is nil: make one with pgxpool.New")
	}
	options := sqlstore.Options{Schema: pgdialect.DefaultSchema}
	for _, opt := range opts {
		if opt == nil {
			return nil, errors.New("pgxstore: an option is nil")
		}
		opt(&options)
	}
	dialect, err := pgdialect.New("pgxstore", pgdialect.Arrays, options)
	if err != nil {
		return nil, err
	}
	s := &Store{pool: pool, schema: options.Schema, prefix: options.Prefix, channel: dialect.Channel}
	s.engine, err = sqlstore.New(s, poolDB{pool}, dialect, options)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Publisher returns a publisher that writes in tx.
func (s *Store) Publisher(tx pgx.Tx, opts ...outbox.PublisherOption) *outbox.Publisher {
	return outbox.PublisherWithTx(s, tx, opts...)
}

// ContextWithTx returns a context by which an [outbox.Publisher] over this store finds tx.
func (s *Store) ContextWithTx(ctx context.Context, tx pgx.Tx) context.Context {
	return outbox.ContextWithTx(ctx, s, tx)
}

// TxFromContext returns the transaction that ctx carries for this store: in a handler under an [outbox.Deduplicator],
// the one that its writes belong in.
func (s *Store) TxFromContext(ctx context.Context) (pgx.Tx, bool) {
	v, _ := outbox.TxFromContext(ctx, s)
	tx, ok := v.(pgx.Tx)
	return tx, ok
}

// InTx calls fn with a transaction, which the ctx of fn carries too. It commits when fn returns nil and rolls back when
// fn returns an error or panics. A cancelled ctx does not roll it back by itself; fn decides.
func (s *Store) InTx(ctx context.Context, fn func(ctx context.Context, tx pgx.Tx) error) error {
	return s.RunInTx(ctx, func(ctx context.Context, tx any) error {
		return fn(ctx, tx.(pgx.Tx)) //nolint:forcetypeassert // the engine's transactions are pgx's
	})
}

// Migrate creates the tables or brings them up to this release. Any number of processes may call it at the same time.
func (s *Store) Migrate(ctx context.Context) error {
	db := stdlib.OpenDBFromPool(s.pool)
	defer db.Close() //nolint:errcheck // the pool stays open
	return migrations.Up(ctx, db, driver, migrations.WithSchema(s.schema), migrations.WithPrefix(s.prefix))
}

// Close releases claims and leases. It does not close the *pgxpool.Pool, and publishing goes on working.
func (s *Store) Close() error { return s.engine.Close() }

// Processed is the record of handled messages, an [outbox.ProcessedStore] and [outbox.Transactor]. It is safe for
// concurrent use.
type Processed struct {
	*processed
	store *Store
}

// Processed returns the store's record of handled messages, for [outbox.NewDeduplicator].
func (s *Store) Processed() *Processed { return &Processed{processed: s.engine.Processed(), store: s} }

// NewProcessedStore returns the record of handled messages of the outbox in the pool's database, for a service that only consumes. Its
// tables are the outbox's; Migrate makes them.
func NewProcessedStore(pool *pgxpool.Pool, opts ...Option) (*Processed, error) {
	s, err := New(pool, opts...)
	if err != nil {
		return nil, err
	}
	return s.Processed(), nil
}

// TxFromContext returns the transaction that a handler under an [outbox.Deduplicator] writes in.
func (p *Processed) TxFromContext(ctx context.Context) (pgx.Tx, bool) {
	return p.store.TxFromContext(ctx)
}

// Migrate is [Store.Migrate].
func (p *Processed) Migrate(ctx context.Context) error { return p.store.Migrate(ctx) }

// Close is [Store.Close].
func (p *Processed) Close() error { return p.store.Close() }
