package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/watermill-outbox/outbox"
)

// Scanner is a row of a result.
type Scanner interface{ Scan(dest ...any) error }

// Conn runs statements, in a transaction or each by itself.
type Conn interface {
	// Exec returns the number of rows affected.
	Exec(ctx context.Context, query string, args ...any) (int64, error)
	// Query calls each for every row, until it returns false or an error.
	Query(ctx context.Context, query string, args []any, each func(Scanner) (bool, error)) error
}

// Query is what Conn.Query takes.
type Query struct {
	SQL  string
	Args []any
	Each func(Scanner) (bool, error)
}

// Tx is a transaction of the engine's own.
type Tx interface {
	Conn
	Commit() error
	Rollback() error
	// Handle is what the user's code gets: a *sql.Tx, a pgx.Tx.
	Handle() any
}

// DB is a database handle.
type DB interface {
	Conn
	// Begin begins a transaction that a cancelled ctx does not end.
	Begin(ctx context.Context) (Tx, error)
	// Snapshot runs the queries of first, and those that second then returns, unless it is nil. Where anything can come late,
	// all of them see the same.
	Snapshot(ctx context.Context, first []Query, second func() ([]Query, error)) error
	// AsTx returns a user's transaction as a Conn, or an error that wraps outbox.ErrInvalidTx.
	AsTx(tx any) (Conn, error)
	// IsHandle tells whether v is the handle that this DB was made from.
	IsHandle(v any) bool
	// Close frees what the DB has made for itself, and leaves the handle open.
	Close() error
}

// SQLDB is a DB over database/sql. It prepares nothing: what is prepared is bound to a connection, which a pooler may share
// out.
type SQLDB struct {
	sqlConn
	db *sql.DB
}

// NewSQLDB returns a DB over db, which stays the caller's to close.
func NewSQLDB(db *sql.DB) *SQLDB { return &SQLDB{sqlConn{db}, db} }

// Snapshot implements DB.
func (d *SQLDB) Snapshot(ctx context.Context, first []Query, second func() ([]Query, error)) error {
	tx, err := d.db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true})
	if err != nil {
		return err
	}
	if err := run(ctx, sqlConn{tx}, first, second); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	return tx.Commit()
}

// Close implements DB.
func (d *SQLDB) Close() error { return nil }

func run(ctx context.Context, conn Conn, first []Query, second func() ([]Query, error)) error {
	for _, q := range first {
		if err := conn.Query(ctx, q.SQL, q.Args, q.Each); err != nil {
			return err
		}
	}
	if second == nil {
		return nil
	}
	then, err := second()
	if err != nil {
		return err
	}
	return run(ctx, conn, then, nil)
}

// IsHandle implements DB.
func (d *SQLDB) IsHandle(v any) bool {
	db, ok := v.(*sql.DB)
	return ok && db == d.db
}

// Begin implements DB.
func (d *SQLDB) Begin(ctx context.Context) (Tx, error) {
	conn, err := d.db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	tx, end, err := d.beginOn(ctx, conn)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return &ownTx{sqlConn: sqlConn{tx}, tx: tx, end: end, conn: conn}, nil
}

// beginOn begins a transaction that ends with end, and not with ctx, as database/sql would have it.
func (d *SQLDB) beginOn(ctx context.Context, conn *sql.Conn) (tx *sql.Tx, end context.CancelFunc, err error) {
	txCtx, end := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, end) // while it has not begun, the end of ctx stops the wait for it
	tx, err = conn.BeginTx(txCtx, nil)
	if !stop() && err == nil { // ctx ended meanwhile, and the transaction with it
		err = context.Cause(ctx)
	}
	if err != nil {
		end()
	}
	return tx, end, err
}

// AsTx implements DB.
func (d *SQLDB) AsTx(tx any) (Conn, error) {
	const takes = "it takes a *sql.Tx or what wraps one with ExecContext, QueryContext, Commit and Rollback (*sqlx.Tx, " +
		"bun.Tx); on a *sql.DB or *sql.Conn each statement would commit by itself"
	if t, ok := tx.(*sql.Tx); ok && t != nil { // nearly always
		return sqlConn{t}, nil
	}
	t, ok := tx.(sqlTx)
	if !ok {
		return nil, fmt.Errorf("a %T: %w: %s", tx, outbox.ErrInvalidTx, takes)
	}
	if v := reflect.ValueOf(tx); v.Kind() == reflect.Pointer && v.IsNil() {
		return nil, fmt.Errorf("a nil %T: %w", tx, outbox.ErrInvalidTx)
	}
	if inner, ok := embeddedTx(tx); ok {
		if inner == nil {
			return nil, fmt.Errorf("a %T without a transaction: %w", tx, outbox.ErrInvalidTx)
		}
		return sqlConn{inner}, nil
	}
	return sqlConn{t}, nil
}

// embeddedTx returns the *sql.Tx that a struct such as *sqlx.Tx or bun.Tx embeds. Statements go to that one, since bun.Tx's
// own ExecContext formats them by placeholders of its own and passes no arguments on.
func embeddedTx(tx any) (inner *sql.Tx, ok bool) {
	v := reflect.Indirect(reflect.ValueOf(tx))
	if v.Kind() != reflect.Struct {
		return nil, false
	}
	field, ok := v.Type().FieldByName("Tx")
	if !ok || !field.Anonymous || field.Type != reflect.TypeFor[*sql.Tx]() || len(field.Index) != 1 {
		return nil, false
	}
	return reflect.TypeAssert[*sql.Tx](v.FieldByIndex(field.Index))
}

// sqlTx is what a user's transaction has. Handles that commit each statement by themselves have no Commit.
type sqlTx interface {
	execQuerier
	Commit() error
	Rollback() error
}

type execQuerier interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

type sqlConn struct{ q execQuerier }

func (c sqlConn) Exec(ctx context.Context, query string, args ...any) (int64, error) {
	return affected(c.q.ExecContext(ctx, query, args...))
}

func (c sqlConn) Query(ctx context.Context, query string, args []any, each func(Scanner) (bool, error)) error {
	rows, err := c.q.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	return eachRow(rows, each)
}

// EndTimeout is how long a transaction of the engine's own may take to commit or roll back.
const EndTimeout = 30 * time.Second

type ownTx struct {
	sqlConn
	tx   *sql.Tx
	end  context.CancelFunc
	conn *sql.Conn
}

func (t *ownTx) Handle() any { return t.tx }

func (t *ownTx) Commit() error {
	defer t.close()
	defer time.AfterFunc(EndTimeout, t.end).Stop()
	return t.tx.Commit()
}

func (t *ownTx) Rollback() error {
	defer t.close()
	defer time.AfterFunc(EndTimeout, t.end).Stop()
	return t.tx.Rollback()
}

// close gives the connection back to the pool, once the transaction has ended.
func (t *ownTx) close() {
	t.end()
	_ = t.conn.Close() // what it could tell is not about the transaction
}

func affected(result sql.Result, err error) (int64, error) {
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

func eachRow(rows *sql.Rows, each func(Scanner) (bool, error)) error {
	defer rows.Close() //nolint:errcheck // rows.Err tells more
	for rows.Next() {
		more, err := each(rows)
		if err != nil || !more {
			return err
		}
	}
	return rows.Err()
}
