package crash_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net/url"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/internal/pgtest"
	"github.com/watermill-outbox/outbox/store/pgxstore"
	"github.com/watermill-outbox/outbox/store/postgres"
	"github.com/watermill-outbox/outbox/store/sqlite"
)

// ttl is short, since whoever comes after a crash waits for it, and long enough for a busy machine to renew in.
const ttl = 500 * time.Millisecond

const (
	kindPgx      = "pgxstore"
	kindPostgres = "postgres"
	kindSQLite   = "sqlite"
)

var kinds = []string{kindPgx, kindPostgres, kindSQLite}

// outboxStore is what the stores have in common.
type outboxStore interface {
	outbox.LeasedStore
	outbox.Transactor
	outbox.TopicPauser
	outbox.TermReporter
	outbox.Leader
	outbox.SchemaChecker
	io.Closer
	Migrate(ctx context.Context) error
}

// database is an outbox, and the tables of an application beside it, as one process sees them.
type database struct {
	store       outboxStore
	processed   outbox.ProcessedStore
	query       func(ctx context.Context, query string) ([]string, error) // of one column
	closeHandle func() error
}

func (d *database) Close() error { return errors.Join(d.store.Close(), d.closeHandle()) }

// tables are those of the application: a row for each message that a producer has published, and for each that a
// consumer has handled.
var tables = []string{
	"CREATE TABLE orders (uuid TEXT NOT NULL)",
	"CREATE TABLE effects (input TEXT NOT NULL, uuid TEXT NOT NULL)",
}

func (d *database) migrate(ctx context.Context) error {
	if err := d.store.Migrate(ctx); err != nil {
		return err
	}
	return d.store.RunInTx(ctx, func(ctx context.Context, tx any) error {
		for _, table := range tables {
			if err := execIn(ctx, tx, table); err != nil {
				return err
			}
		}
		return nil
	})
}

// execIn runs a statement in a transaction of the store's.
func execIn(ctx context.Context, tx any, query string, args ...any) error {
	var err error
	switch tx := tx.(type) {
	case pgx.Tx:
		_, err = tx.Exec(ctx, query, args...)
	case *sql.Tx:
		_, err = tx.ExecContext(ctx, query, args...)
	default:
		err = fmt.Errorf("the transaction is a %T", tx)
	}
	return err
}

func (j job) open(ctx context.Context, t *trap) (*database, error) {
	switch j.Kind {
	case kindPgx:
		return j.openPgx(ctx, t)
	case kindPostgres:
		return j.openPostgres(t)
	case kindSQLite:
		return j.openSQLite(t)
	}
	return nil, fmt.Errorf("no store is called %q", j.Kind)
}

func (j job) openPgx(ctx context.Context, t *trap) (*database, error) {
	config, err := pgxpool.ParseConfig(pgtest.V15.URL())
	if err != nil {
		return nil, err
	}
	j.configure(config.ConnConfig, t)
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	store, err := pgxstore.New(pool, pgxstore.WithSchema(j.Database), pgxstore.WithLeaseTTL(ttl))
	if err != nil {
		return nil, err
	}
	return &database{
		store: store, processed: store.Processed(),
		query: func(ctx context.Context, query string) ([]string, error) {
			rows, err := pool.Query(ctx, query)
			if err != nil {
				return nil, err
			}
			return pgx.CollectRows(rows, pgx.RowTo[string])
		},
		closeHandle: func() error { pool.Close(); return nil },
	}, nil
}

func (j job) openPostgres(t *trap) (*database, error) {
	config, err := pgx.ParseConfig(pgtest.V15.URL())
	if err != nil {
		return nil, err
	}
	j.configure(config, t)
	db := stdlib.OpenDB(*config)
	store, err := postgres.New(db, postgres.WithSchema(j.Database), postgres.WithLeaseTTL(ttl))
	if err != nil {
		return nil, err
	}
	return &database{
		store: store, processed: store.Processed(), query: queryOf(db), closeHandle: db.Close,
	}, nil
}

// configure has the server know the process by its name, and the trap see what is sent.
func (j job) configure(config *pgx.ConnConfig, t *trap) {
	config.TLSConfig, config.Fallbacks = nil, nil
	config.RuntimeParams["search_path"] = j.Database
	config.RuntimeParams["application_name"] = j.Name
	if t != nil {
		config.DialFunc = t.dial
	}
}

// openSQLite opens the file as sqlite.Open does.
func (j job) openSQLite(t *trap) (db *database, err error) {
	params := url.Values{"_synchronous": {"NORMAL"}} // that forgets nothing when only the process ends
	var handle *sql.DB
	if t == nil {
		handle, err = sqlite.Open(j.Database + "?" + params.Encode())
	} else {
		handle, err = openTrapped(j.Database, params, t)
	}
	if err != nil {
		return nil, err
	}
	store, err := sqlite.New(handle, sqlite.WithLeaseTTL(ttl))
	if err != nil {
		return nil, errors.Join(err, handle.Close())
	}
	return &database{
		store: store, processed: store.Processed(), query: queryOf(handle), closeHandle: handle.Close,
	}, nil
}

func queryOf(db *sql.DB) func(context.Context, string) ([]string, error) {
	return func(ctx context.Context, query string) (all []string, err error) {
		rows, err := db.QueryContext(ctx, query)
		if err != nil {
			return nil, err
		}
		defer rows.Close() //nolint:errcheck // rows.Err tells more
		for rows.Next() {
			var one string
			if err := rows.Scan(&one); err != nil {
				return nil, err
			}
			all = append(all, one)
		}
		return all, rows.Err()
	}
}

// waitUntilGone waits until the server has ended the sessions of a process that has: what it had sent may be running yet.
func (j job) waitUntilGone(ctx context.Context, db *database) error {
	if j.Kind == kindSQLite {
		return nil
	}
	for {
		sessions, err := db.query(ctx, "SELECT pid::text FROM pg_stat_activity WHERE application_name = '"+j.Name+"'")
		if err != nil || len(sessions) == 0 {
			return err
		}
		time.Sleep(time.Millisecond)
	}
}
