package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"sync"
)

// EmbeddedDB is a SQLDB over a database in this process, which has no pooler in between, and one writer, so that nothing
// comes late. It prepares each statement of the engine's own once.
type EmbeddedDB struct {
	*SQLDB

	mu    sync.Mutex
	stmts map[string]*sql.Stmt
}

// NewEmbeddedDB returns a DB over db, which stays the caller's to close.
func NewEmbeddedDB(db *sql.DB) *EmbeddedDB {
	return &EmbeddedDB{SQLDB: NewSQLDB(db), stmts: map[string]*sql.Stmt{}}
}

func (d *EmbeddedDB) stmt(ctx context.Context, query string) (*sql.Stmt, error) {
	d.mu.Lock()
	stmt := d.stmts[query]
	d.mu.Unlock()
	if stmt != nil {
		return stmt, nil
	}
	stmt, err := d.db.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if other := d.stmts[query]; other != nil { // somebody else was faster
		return other, stmt.Close() //nolint:sqlclosecheck // not on every path
	}
	d.stmts[query] = stmt
	return stmt, nil
}

// Exec implements Conn.
func (d *EmbeddedDB) Exec(ctx context.Context, query string, args ...any) (int64, error) {
	stmt, err := d.stmt(ctx, query) //nolint:sqlclosecheck // it is kept for the next call
	if err != nil {
		return 0, err
	}
	return affected(stmt.ExecContext(ctx, args...))
}

// Query implements Conn.
func (d *EmbeddedDB) Query(ctx context.Context, query string, args []any, each func(Scanner) (bool, error)) error {
	stmt, err := d.stmt(ctx, query) //nolint:sqlclosecheck // it is kept for the next call
	if err != nil {
		return err
	}
	rows, err := stmt.QueryContext(ctx, args...)
	if err != nil {
		return err
	}
	return eachRow(rows, each)
}

// Snapshot implements DB.
func (d *EmbeddedDB) Snapshot(ctx context.Context, first []Query, second func() ([]Query, error)) error {
	return run(ctx, d, first, second)
}

// Close implements DB.
func (d *EmbeddedDB) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var errs []error
	for query, stmt := range d.stmts {
		errs = append(errs, stmt.Close())
		delete(d.stmts, query)
	}
	return errors.Join(errs...)
}
