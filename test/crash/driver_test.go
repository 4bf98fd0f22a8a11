package crash_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"net/url"
)

// sqliteConnector opens connections of go-sqlite3 that pass points where SQLite does something.
//
//	before delete       it is about to run
//	in delete           it has changed a row, and goes on
//	committing delete   it has run, outside of a transaction, and is about to be committed
//	after delete        it has ended
//	in commit           so is a transaction
type sqliteConnector struct {
	driver driver.Driver
	dsn    string
	trap   *trap
}

// openTrapped is sqlite.Open with points.
func openTrapped(path string, params url.Values, t *trap) (*sql.DB, error) {
	db, err := sql.Open("sqlite3", "") // which package sqlite has registered
	if err != nil {
		return nil, err
	}
	defer db.Close() //nolint:errcheck // nothing was opened
	for name, value := range map[string]string{
		"_journal_mode": "WAL", "_busy_timeout": "5000", "_txlock": "immediate", "_stmt_cache_size": "64",
	} {
		params.Set(name, value)
	}
	return sql.OpenDB(sqliteConnector{db.Driver(), "file:" + path + "?" + params.Encode(), t}), nil
}

func (c sqliteConnector) Driver() driver.Driver { return c.driver }

func (c sqliteConnector) Connect(context.Context) (driver.Conn, error) {
	opened, err := c.driver.Open(c.dsn)
	if err != nil {
		return nil, err
	}
	conn, ok := opened.(sqliteDriverConn)
	if !ok {
		return nil, fmt.Errorf("a %T has other methods than it had", opened)
	}
	s := &sqliteConn{sqliteDriverConn: conn, trap: c.trap}
	conn.RegisterUpdateHook(func(int, string, string, int64) { s.trap.step("in " + s.doing) })
	conn.RegisterCommitHook(func() int {
		point := "committing " + s.doing
		if s.doing == "commit" {
			point = "in commit"
		}
		s.trap.step(point)
		return 0 // go on
	})
	return s, nil
}

// sqliteDriverConn is what database/sql uses of a *sqlite3.SQLiteConn, and its hooks.
type sqliteDriverConn interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.QueryerContext
	driver.Pinger
	RegisterUpdateHook(callback func(op int, database, table string, row int64))
	RegisterCommitHook(callback func() int)
}

// sqliteConn is used by one goroutine at a time, as database/sql does.
type sqliteConn struct {
	sqliteDriverConn

	trap  *trap
	doing string
}

// do passes the point before something, and returns what passes the one after it.
func (c *sqliteConn) do(what string) (done func()) {
	c.doing = what
	c.trap.step("before " + what)
	return func() { c.trap.at("after " + what) }
}

func (c *sqliteConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	defer c.do(nameOf(query))()
	return c.sqliteDriverConn.ExecContext(ctx, query, args)
}

func (c *sqliteConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	done := c.do(nameOf(query))
	rows, err := c.sqliteDriverConn.QueryContext(ctx, query, args)
	if err != nil {
		return nil, err
	}
	return sqliteRows{rows, done}, nil
}

func (c *sqliteConn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	prepared, err := c.sqliteDriverConn.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	stmt, ok := prepared.(sqliteDriverStmt)
	if !ok {
		return nil, fmt.Errorf("a %T has other methods than it had", prepared)
	}
	return &sqliteStmt{stmt, c, nameOf(query)}, nil
}

func (c *sqliteConn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	defer c.do("begin")()
	tx, err := c.sqliteDriverConn.BeginTx(ctx, opts)
	if err != nil {
		return nil, err
	}
	return sqliteTx{tx, c}, nil
}

type sqliteTx struct {
	tx   driver.Tx
	conn *sqliteConn
}

func (t sqliteTx) Commit() error {
	defer t.conn.do("commit")()
	return t.tx.Commit()
}

func (t sqliteTx) Rollback() error {
	defer t.conn.do("rollback")()
	return t.tx.Rollback()
}

type sqliteDriverStmt interface {
	driver.Stmt
	driver.StmtExecContext
	driver.StmtQueryContext
}

type sqliteStmt struct {
	sqliteDriverStmt

	conn *sqliteConn
	name string
}

func (s *sqliteStmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	defer s.conn.do(s.name)()
	return s.sqliteDriverStmt.ExecContext(ctx, args)
}

func (s *sqliteStmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	done := s.conn.do(s.name)
	rows, err := s.sqliteDriverStmt.QueryContext(ctx, args)
	if err != nil {
		return nil, err
	}
	return sqliteRows{rows, done}, nil
}

// sqliteRows runs the statement as it is read.
type sqliteRows struct {
	driver.Rows

	done func()
}

func (r sqliteRows) Close() error {
	err := r.Rows.Close()
	r.done()
	return err
}
