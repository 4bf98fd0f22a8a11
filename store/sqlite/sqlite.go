// Package sqlite keeps an outbox in a SQLite database, through github.com/mattn/go-sqlite3 and database/sql. Several
// processes may use one file: any number of them publish and handle messages, one at a time relays, and another takes
// over when it goes away.
//
//	db, err := sqlite.Open("app.db")
//	store, err := sqlite.New(db)
//	err = store.Migrate(ctx)
package sqlite

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/internal/sqlstore"
	"github.com/watermill-outbox/outbox/migrations"
)

// Store is an outbox in SQLite. It implements [outbox.LeasedStore] and all the optional interfaces, and is safe for
// concurrent use.
//
// SQLite has one writer at a time, and a transaction of [Open] is a writer from its beginning: keep transactions short,
// and write in a handler through its transaction alone, since another connection would wait for the handler to end. The
// transactions and writes of all stores on one *sql.DB wait for each other in the order in which they came, for up to 30 s,
// but for no single transaction longer than the busy timeout, if it was open already when they came. Transactions that
// you begin on the *sql.DB yourself, and other processes, compete as SQLite has it, without any order.
//
// A statement that fails may roll the whole transaction back without database/sql knowing: INSERT OR ROLLBACK and other
// conflict clauses of that name, RAISE(ROLLBACK) in a trigger, a full disk, the end of the statement's context.
// Statements after it commit by themselves, and a message would be published although Commit fails. So end a
// transaction at the first error, and do not set deadlines for single statements of it. In the transactions of InTx and
// of a Deduplicator, Publish notices, and ends the transaction; in those that you begin yourself it does not, since to ask
// would take a statement more. Publish itself cannot be interrupted, and ends the transaction if it is the one to fail.
//
// A transaction, where one is asked for, is a *sql.Tx or what wraps one with ExecContext, QueryContext, Commit and
// Rollback, such as *sqlx.Tx and bun.Tx; where a struct embeds the *sql.Tx, statements go to that one.
//
// Beside the methods below it has those of the interfaces: Save, FetchPending, MarkProcessed, MarkFailed,
// DeleteProcessedBefore; Claim, Settle, Release, Owned, Leads; RunInTx, Notify, PauseTopics, CheckSchema; ListFailed,
// CountFailed, Requeue, Discard; Stats.
type Store struct {
	*engine
	db     *sql.DB
	prefix string
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

// WithPrefix puts a prefix before all table names, for several outboxes in one database: at most 30 letters, digits and
// underscores. Migrate goes by it; migrations.Up needs the same prefix.
func WithPrefix(prefix string) Option { return func(o *sqlstore.Options) { o.Prefix = prefix } }

// WithLeaseTTL sets after what time another process takes over when the one that relays has died: 100 ms to 1 h,
// default 10 s. A process that stops gracefully hands over at once. It should be longer than any write transaction
// lasts, since the lease is renewed by a write.
func WithLeaseTTL(d time.Duration) Option { return func(o *sqlstore.Options) { o.LeaseTTL = d } }

//go:embed queries/*.sql
var queryFiles embed.FS

// driver is how package migrations calls this database.
const driver = "sqlite3"

// New returns a Store over db, which stays the caller's to close. It refuses a database without the settings that the
// outbox relies on, which [Open] makes. It looks at the database's settings only: the tables come with Migrate.
func New(db *sql.DB, opts ...Option) (*Store, error) {
	if db == nil {
		return nil, errors.New("sqlite: the *sql.DB is nil: open one with sqlite.Open")
	}
	busyTimeout, err := checkSettings(db)
	if err != nil {
		return nil, fmt.Errorf("sqlite: %w", err)
	}
	var options sqlstore.Options
	for _, opt := range opts {
		if opt == nil {
			return nil, errors.New("sqlite: an option is nil")
		}
		opt(&options)
	}
	queries, err := fs.Sub(queryFiles, "queries")
	if err != nil {
		return nil, fmt.Errorf("sqlite: %w", err)
	}
	s := &Store{db: db, prefix: options.Prefix}
	s.engine, err = sqlstore.New(s, newDatabase(db, busyTimeout), sqlstore.Dialect{
		Name:      "sqlite",
		Quote:     '"',
		MaxRows:   5000, // of 6 parameters each; SQLite takes 32,766
		Queries:   queries,
		IsMissing: isMissing,
		TxIsGone:  txIsGone,
		Time:      sqlstore.Millis(),
		Batch:     sqlstore.JSONBatch,
	}, options)
	if err != nil {
		return nil, err
	}
	return s, nil
}

func isMissing(err error) bool {
	text := err.Error()
	return strings.Contains(text, "no such table: ") || strings.Contains(text, "no such column: ") ||
		strings.Contains(text, "has no column named ")
}

// txIsGone tells whether SQLite has rolled the whole transaction back, as it does when the disk is full or a statement is
// interrupted: then it lets another one begin. https://www.sqlite.org/lang_transaction.html
func txIsGone(ctx context.Context, tx sqlstore.Conn) bool {
	if _, err := tx.Exec(ctx, "BEGIN"); err != nil {
		return false
	}
	_, _ = tx.Exec(ctx, "ROLLBACK") // of the one that has just begun
	return true
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
	return migrations.Up(ctx, s.db, driver, migrations.WithPrefix(s.prefix))
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
