package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	_ "github.com/mattn/go-sqlite3" // the driver "sqlite3"
)

// settings are what a connection needs, as go-sqlite3's DSN calls them, and why.
var settings = []struct{ name, value string }{
	{"_journal_mode", "WAL"},   // readers and the one writer do not block each other
	{"_busy_timeout", "5000"},  // a writer waits for its turn, in milliseconds, instead of failing at once
	{"_txlock", "immediate"},   // a transaction that reads before it writes would fail without waiting
	{"_synchronous", "FULL"},   // go-sqlite3 would set NORMAL, which forgets the last commits in a power failure
	{"_stmt_cache_size", "64"}, // to parse a small INSERT takes longer than to run it
}

// Open opens the SQLite file at path, and creates it if it is not there, with the settings that [New] asks for on every
// connection: journal_mode WAL, busy_timeout 5 s, transactions that begin IMMEDIATE, synchronous FULL; and a cache of 64
// prepared statements, yours included.
//
// path may be followed by parameters of go-sqlite3, which take precedence: "app.db?_synchronous=NORMAL" is several
// times faster where commits are small, and may lose the last ones in a power failure (not in a crash of the process);
// their messages may have been published by then. Use "app.db?_foreign_keys=true" if your tables have foreign keys.
func Open(path string) (*sql.DB, error) {
	name, query, _ := strings.Cut(strings.TrimPrefix(path, "file:"), "?")
	isURI, file := strings.HasPrefix(path, "file:"), withoutSecrets(name)
	if isURI && namesHost(name) { // SQLite would cite all of it
		return nil, errors.New("sqlite: the address names a host, where Open needs a file: app.db, or file:///var/lib/app.db")
	}
	params, err := url.ParseQuery(query)
	if err != nil { // cites what it does not understand
		return nil, fmt.Errorf("sqlite: the parameters of %q cannot be read: write %%25 for %%, and %%3B for a semicolon", file)
	}
	if name == "" && params.Get("mode") != "memory" {
		return nil, fmt.Errorf("sqlite: %q names no file: Open needs a path, such as app.db", file)
	}
	if strings.HasPrefix(name, ":memory:") || params.Get("mode") == "memory" {
		return nil, fmt.Errorf("sqlite: %q is a database in memory, of which every connection would have its own; "+
			"use a file, or package store/memory in tests", file)
	}
	for _, s := range settings {
		if !params.Has(s.name) {
			params.Set(s.name, s.value)
		}
	}
	if !isURI {
		name = (&url.URL{Path: name}).EscapedPath()
		if strings.HasPrefix(name, "//") {
			name = "//" + name // or the folder would be a host
		}
	}
	db, err := sql.Open(driver, "file:"+name+"?"+params.Encode())
	if err != nil {
		return nil, fmt.Errorf("sqlite: open %q: %w", file, err)
	}
	if err := db.PingContext(context.Background()); err != nil {
		return nil, fmt.Errorf("sqlite: open %q: %w", file, errors.Join(err, db.Close()))
	}
	return db, nil
}

// withoutSecrets returns what may be told of a name, which may be the address of a server by mistake. (Parameters are never
// told: they may have a password, too.)
func withoutSecrets(name string) string {
	if at := strings.LastIndex(name, "@"); at >= 0 {
		return "..." + name[at:]
	}
	return name
}

// namesHost tells whether a URI without its scheme has a host in which SQLite would look for no file.
func namesHost(name string) bool {
	rest, has := strings.CutPrefix(name, "//")
	host, _, _ := strings.Cut(rest, "/")
	return has && host != "" && host != "localhost"
}

// dsnHint is what a database that New refuses lacks.
const dsnHint = "open it with sqlite.Open, or with the DSN file:PATH?_journal_mode=WAL&_busy_timeout=5000&_txlock=immediate"

// checkSettings makes sure that db has what Open sets, and returns the busy timeout.
func checkSettings(db *sql.DB) (busyTimeout time.Duration, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var journal string
	if err := db.QueryRowContext(ctx, "PRAGMA journal_mode").Scan(&journal); err != nil {
		return 0, fmt.Errorf("read the journal mode: %w", err)
	}
	if !strings.EqualFold(journal, "wal") {
		return 0, fmt.Errorf("the journal mode is %q, not WAL: %s", journal, dsnHint)
	}
	var timeout int
	if err := db.QueryRowContext(ctx, "PRAGMA busy_timeout").Scan(&timeout); err != nil {
		return 0, fmt.Errorf("read the busy timeout: %w", err)
	}
	if timeout <= 0 {
		return 0, fmt.Errorf("there is no busy timeout, so that concurrent writers would fail: %s", dsnHint)
	}
	busyTimeout = time.Duration(timeout) * time.Millisecond
	if stats := db.Stats(); stats.MaxOpenConnections > 0 && stats.MaxOpenConnections-stats.InUse < 2 {
		return busyTimeout, nil // the look takes two connections; with one, transactions cannot get in each other's way
	}
	immediate, err := beginsImmediate(ctx, db, timeout)
	switch {
	case err != nil && strings.Contains(err.Error(), "database table is locked"):
		return 0, fmt.Errorf("connections that share a cache do not wait for each other: leave out the parameter "+
			"cache=shared: %w", err)
	case err != nil:
		return 0, err
	case !immediate:
		return 0, fmt.Errorf("transactions do not begin IMMEDIATE, so that those which read before they write would fail "+
			"under load: %s", dsnHint)
	}
	return busyTimeout, nil
}

// beginsImmediate tells whether a transaction of db holds the write lock from its beginning: whether another connection
// is refused it.
func beginsImmediate(ctx context.Context, db *sql.DB, timeout int) (immediate bool, err error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return false, fmt.Errorf("connect: %w", err)
	}
	defer conn.Close() //nolint:errcheck // it goes back to the pool
	if _, err := conn.ExecContext(ctx, "PRAGMA busy_timeout = 0"); err != nil {
		return false, fmt.Errorf("set the busy timeout: %w", err)
	}
	defer func() {
		_, resetErr := conn.ExecContext(ctx, fmt.Sprintf("PRAGMA busy_timeout = %d", timeout))
		err = errors.Join(err, resetErr)
	}()
	tx, err := db.BeginTx(ctx, nil)
	if isBusy(err) {
		return true, nil // it asked for the lock, which somebody else has
	}
	if err != nil {
		return false, fmt.Errorf("begin a transaction: %w", err)
	}
	defer tx.Rollback() //nolint:errcheck // it has done nothing that is to stay
	_, err = conn.ExecContext(ctx, "BEGIN IMMEDIATE")
	switch {
	case isBusy(err):
		return true, nil
	case err != nil:
		return false, fmt.Errorf("begin a transaction: %w", err)
	}
	if _, err = conn.ExecContext(ctx, "ROLLBACK"); err != nil {
		return false, fmt.Errorf("end a transaction: %w", err)
	}
	// A read-only database lets any number of transactions begin. Any write tells; this one is rolled back.
	if _, err = tx.ExecContext(ctx, "PRAGMA user_version = 0"); err != nil && !isBusy(err) {
		return false, fmt.Errorf("the outbox needs to write: open the database without mode=ro, immutable or query_only, "+
			"and let this process write the file and its directory: %w", err)
	}
	return false, nil
}

func isBusy(err error) bool {
	return err != nil && (strings.Contains(err.Error(), "database is locked") || strings.Contains(err.Error(), "busy"))
}
