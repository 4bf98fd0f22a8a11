package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/mattn/go-sqlite3"

	"github.com/watermill-outbox/outbox/internal/sqlstore"
)

// database is a sqlstore.DB whose writes take turns.
type database struct {
	*sqlstore.EmbeddedDB
	db       *sql.DB
	writers  *writers
	patience time.Duration // the busy timeout
}

func newDatabase(db *sql.DB, busyTimeout time.Duration) *database {
	return &database{EmbeddedDB: sqlstore.NewEmbeddedDB(db), db: db, writers: writersOf(db), patience: busyTimeout}
}

// Exec implements sqlstore.Conn.
func (d *database) Exec(ctx context.Context, query string, args ...any) (int64, error) {
	if err := d.writers.enter(ctx, d.patience, false); err != nil {
		return 0, err
	}
	defer d.writers.leave()
	return d.EmbeddedDB.Exec(ctx, query, args...)
}

// Query implements sqlstore.Conn.
func (d *database) Query(ctx context.Context, query string, args []any, each func(sqlstore.Scanner) (bool, error)) error {
	if strings.Contains(query, "RETURNING") { // it writes
		if err := d.writers.enter(ctx, d.patience, false); err != nil {
			return err
		}
		defer d.writers.leave()
	}
	return d.EmbeddedDB.Query(ctx, query, args, each)
}

// Begin implements sqlstore.DB.
func (d *database) Begin(ctx context.Context) (sqlstore.Tx, error) {
	ctx, cancel := context.WithTimeout(ctx, waitTimeout)
	defer cancel()
	if err := d.writers.enter(ctx, d.patience, true); err != nil {
		return nil, err
	}
	t, err := d.begin(ctx)
	if err != nil {
		d.writers.leave()
		return nil, err
	}
	d.writers.open.Store(t)
	return t, nil
}

func (d *database) begin(ctx context.Context) (*transaction, error) {
	conn, err := d.db.Conn(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		return nil, fmt.Errorf("no connection of the *sql.DB has come free: %w: %w", err, errInTheWay)
	}
	if err != nil {
		return nil, err
	}
	tx, err := beginOn(ctx, conn)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	statements, err := d.SQLDB.AsTx(tx)
	if err != nil {
		return nil, errors.Join(err, tx.Rollback(), conn.Close())
	}
	return &transaction{Conn: statements, tx: tx, conn: conn, writers: d.writers}, nil
}

// beginOn begins a transaction as soon as nobody else writes. It gives up when ctx has ended, or when nobody has committed
// since it found the database locked the last time: one transaction stays open then.
//
// A BEGIN is not interrupted, since go-sqlite3 would hand it to another goroutine and back, which takes longer than the
// statement.
func beginOn(ctx context.Context, conn *sql.Conn) (*sql.Tx, error) {
	for last := int64(-1); ; {
		tx, err := conn.BeginTx(context.WithoutCancel(ctx), nil)
		if err == nil || !isBusy(err) {
			return tx, err
		}
		var version int64
		look := conn.QueryRowContext(context.WithoutCancel(ctx), "PRAGMA data_version").Scan(&version)
		if look != nil || version == last || ctx.Err() != nil {
			return nil, fmt.Errorf("%w: %w", err, errInTheWay)
		}
		last = version
	}
}

// AsTx implements sqlstore.DB. Of the engine's own transactions it notices that SQLite has ended them.
func (d *database) AsTx(tx any) (sqlstore.Conn, error) {
	if t := d.writers.open.Load(); t != nil && tx == any(t.tx) && t.hasEnded() {
		_ = t.tx.Rollback() // from now on it refuses statements, which would commit by themselves
		return nil, fmt.Errorf("a statement that failed has ended the transaction (ROLLBACK as its conflict clause, a full "+
			"disk, an interrupt); return the first error: %w", sql.ErrTxDone)
	}
	return d.SQLDB.AsTx(tx)
}

// transaction is one of the engine's own. It has the turn.
type transaction struct {
	sqlstore.Conn
	tx      *sql.Tx
	conn    *sql.Conn
	writers *writers
}

// Handle implements sqlstore.Tx.
func (t *transaction) Handle() any { return t.tx }

// Commit implements sqlstore.Tx.
func (t *transaction) Commit() error {
	defer t.end()
	return t.tx.Commit()
}

// Rollback implements sqlstore.Tx.
func (t *transaction) Rollback() error {
	defer t.end()
	return t.tx.Rollback()
}

// end gives the connection back to the pool, and the turn to the next.
func (t *transaction) end() {
	if t.conn.Close() != nil {
		return // it was here before
	}
	t.writers.open.Store(nil)
	t.writers.leave()
}

// hasEnded tells whether SQLite has rolled the transaction back by itself, which database/sql does not know.
func (t *transaction) hasEnded() (ended bool) {
	_ = t.conn.Raw(func(driverConn any) error {
		c, ok := driverConn.(*sqlite3.SQLiteConn) // a driver that wraps it may be registered under another name
		ended = ok && c.AutoCommit()
		return nil
	})
	return ended
}
