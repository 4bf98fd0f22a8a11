package migrations

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/database"
)

const (
	versionTable = "outbox_version"
	// noVersionTable is the version where nothing was ever applied, or all was taken down.
	noVersionTable int64 = -1
	// patience is how long others may lock the database before it is an error.
	patience = 30 * time.Second
)

// A migrator leads one database to a schema.
type migrator struct {
	schema
	db       *sql.DB
	patience time.Duration
}

func newMigrator(db *sql.DB, driverName string, opts []Option) (migrator, error) {
	if db == nil {
		return migrator{}, errors.New("outbox: migrations need a database, not a nil *sql.DB")
	}
	s, err := newSchema(driverName, opts)
	return migrator{schema: s, db: db, patience: patience}, err
}

func (m migrator) up(ctx context.Context) error {
	latest, err := m.latest()
	if err != nil {
		return err
	}
	return m.settle(ctx, func(version int64) error {
		if version >= latest {
			return nil
		}
		if err := m.createVersionTable(ctx); err != nil {
			return err
		}
		p, err := m.provider()
		if err != nil {
			return err
		}
		_, err = p.Up(ctx)
		return err
	})
}

func (m migrator) down(ctx context.Context) error {
	latest, err := m.latest()
	if err != nil {
		return err
	}
	return m.settle(ctx, func(version int64) error {
		switch {
		case version == noVersionTable:
			return nil
		case version > latest:
			return fmt.Errorf("the schema is at version %d and this release knows versions up to %d: migrate down with "+
				"the release that migrated up", version, latest)
		case version > 0:
			p, err := m.provider()
			if err != nil {
				return err
			}
			if _, err := p.DownTo(ctx, 0); err != nil {
				return err
			}
		}
		return m.dropVersionTable(ctx)
	})
}

// settle runs step until it succeeds or fails for a reason of its own. goose has no lock that keeps others out of an
// SQLite database, and one that lasts longer than a transaction would not survive PgBouncer, so of several processes one
// wins and the others fail with whatever error they happen to meet: a table that exists already, or no longer, a version
// that is not unique, a lock. A loser sees the winner's commit, so the version is another one than before its step;
// then, and where something is locked, it tries again.
func (m migrator) settle(ctx context.Context, step func(version int64) error) error {
	again := backoff.NewExponentialBackOff()
	again.InitialInterval = 5 * time.Millisecond
	again.MaxInterval = 500 * time.Millisecond

	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		err := m.attempt(ctx, step)
		// The end of ctx is backoff's to report.
		if err == nil || errors.Is(err, errOvertaken) || m.dialect.isBusy(err) || ctx.Err() != nil {
			return struct{}{}, err
		}
		return struct{}{}, backoff.Permanent(err)
	}, backoff.WithBackOff(again), backoff.WithMaxElapsedTime(m.patience))
	return err
}

// errOvertaken is wrapped by the error of an attempt during which somebody changed the version.
var errOvertaken = errors.New("another process is migrating the same tables")

func (m migrator) attempt(ctx context.Context, step func(version int64) error) error {
	before, err := m.version(ctx)
	if err != nil {
		return err
	}
	failure := step(before)
	if failure == nil {
		return nil
	}
	after, err := m.version(ctx)
	switch {
	case err != nil:
		return errors.Join(err, failure) // a lock is the first to be seen: it may hide that somebody was faster
	case after != before:
		return fmt.Errorf("%w: %w", errOvertaken, failure)
	default:
		return m.explain(ctx, after, failure)
	}
}

// explain adds what to do about tables that came about without a version.
func (m migrator) explain(ctx context.Context, version int64, err error) error {
	if version > 0 {
		return err
	}
	const table = "outbox_messages"
	if exists, lookErr := m.exists(ctx, table); lookErr != nil || !exists {
		return err
	}
	return fmt.Errorf("%s was not created by migrations.Up: go on with the tool that created it, or choose another "+
		"prefix with migrations.WithPrefix: %w", m.names.Table(table), err)
}

// provider is made for each attempt: it remembers what it has seen.
func (m migrator) provider() (*goose.Provider, error) {
	store, err := database.NewStore(m.dialect.goose, m.names.Table(versionTable))
	if err != nil {
		return nil, err
	}
	files := m.files
	files.first = m.dialect.lockTimeout
	return goose.NewProvider(goose.DialectCustom, m.db, files,
		goose.WithStore(versionStore{store}),
		// The application may have Go migrations of its own.
		goose.WithDisableGlobalRegistry(true),
		goose.WithLogger(goose.NopLogger()),
	)
}

// versionStore tells goose that the version table is there: it was created or found right before. goose's own way of
// creating it waits for a second whenever it loses a race and leaves the version without a unique constraint, and its
// own way of looking for it does not understand quoted names.
type versionStore struct{ database.Store }

func (versionStore) TableExists(context.Context, database.DBTxConn) (bool, error) { return true, nil }

func (m migrator) createVersionTable(ctx context.Context) error {
	statements, err := fs.ReadFile(m.files, "version.sql")
	if err != nil {
		return err
	}
	// Without parameters, so that PostgreSQL runs all of it in one transaction.
	_, err = m.db.ExecContext(ctx, m.dialect.lockTimeout+string(statements))
	return err
}

// dropVersionTable leaves the table alone if another process has migrated up in the meantime.
func (m migrator) dropVersionTable(ctx context.Context) error {
	tx, err := m.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()

	if _, err := tx.ExecContext(ctx, m.dialect.lockTimeout+m.names.Render(m.dialect.lock)); err != nil {
		return err
	}
	var applied int64
	err = tx.QueryRowContext(ctx, m.names.Render("SELECT count(*) FROM outbox_version WHERE version_id > 0")).
		Scan(&applied)
	if err != nil || applied > 0 {
		return err
	}
	if _, err := tx.ExecContext(ctx, m.names.Render("DROP TABLE outbox_version")); err != nil {
		return err
	}
	return tx.Commit()
}

// version returns the last applied version, or noVersionTable.
func (m migrator) version(ctx context.Context) (int64, error) {
	if exists, err := m.exists(ctx, versionTable); err != nil || !exists {
		return noVersionTable, err
	}
	version, err := m.lastApplied(ctx)
	if err == nil {
		return version, nil
	}
	// Someone may have taken it down since the first look.
	if exists, lookErr := m.exists(ctx, versionTable); lookErr == nil && !exists {
		return noVersionTable, nil
	}
	return noVersionTable, err
}

// lastApplied is a transaction only where there is a timeout to set: SQLite's could be one that locks others out.
func (m migrator) lastApplied(ctx context.Context) (version int64, err error) {
	var db interface {
		QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
	} = m.db
	if m.dialect.lockTimeout != "" {
		tx, err := m.db.BeginTx(ctx, nil)
		if err != nil {
			return 0, err
		}
		defer func() { _ = tx.Rollback() }()
		if _, err := tx.ExecContext(ctx, m.dialect.lockTimeout); err != nil {
			return 0, err
		}
		db = tx
	}
	err = db.QueryRowContext(ctx, m.names.Render("SELECT coalesce(max(version_id), 0) FROM outbox_version")).Scan(&version)
	return version, err
}

func (m migrator) exists(ctx context.Context, table string) (bool, error) {
	query, args := m.dialect.tableExists(m.names, table)
	var n int
	err := m.db.QueryRowContext(ctx, query, args...).Scan(&n)
	return n > 0, err
}
