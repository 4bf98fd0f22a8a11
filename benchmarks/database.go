package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/watermill-outbox/outbox/benchmarks/peer"
)

// databaseName is of the database that a run has for itself. It takes what an interrupted run has left for its own.
const databaseName = "outbox_benchmarks"

// postgresURL is the server, as for the tests.
func postgresURL() string {
	return cmp.Or(os.Getenv("WATERMILL_TEST_POSTGRES_URL"), "postgres://postgres@127.0.0.1:25432/postgres")
}

// claim is the session whose lock says that the server's database is this run's. createDatabase takes it, dropDatabase
// gives it back; it goes with the process at the latest.
var claim *pgx.Conn

// claimKey is the key of the advisory lock: "outboxbm".
const claimKey = 0x6f7574626f78626d

// createDatabase creates the database anew, and returns its URL. Until dropDatabase, no other run on the server can.
func createDatabase(ctx context.Context) (string, error) {
	of, err := url.Parse(postgresURL())
	if err != nil {
		return "", fmt.Errorf("WATERMILL_TEST_POSTGRES_URL is to be a URL: %w", err)
	}
	if claim, err = claimServer(ctx); err != nil {
		return "", err
	}
	if err := execute(ctx, claim, append(drop, "CREATE DATABASE "+databaseName)...); err != nil {
		_ = claim.Close(context.WithoutCancel(ctx)) // the next run drops what there is
		claim = nil
		return "", fmt.Errorf("creating database %s: %w", databaseName, err)
	}
	of.Path = "/" + databaseName
	return of.String(), nil
}

// claimServer takes the lock. The lock is one of the database postgres, which every server has, since each database has
// locks of its own.
func claimServer(ctx context.Context) (*pgx.Conn, error) {
	config, err := pgx.ParseConfig(postgresURL())
	if err != nil {
		return nil, err
	}
	config.Database, config.RuntimeParams["application_name"] = "postgres", "outbox benchmarks"
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("no PostgreSQL: run `make services`, or name one in WATERMILL_TEST_POSTGRES_URL: %w", err)
	}
	var got bool
	if err = conn.QueryRow(ctx, "SELECT pg_try_advisory_lock($1)", int64(claimKey)).Scan(&got); err == nil && !got {
		err = fmt.Errorf("another run of the benchmarks has PostgreSQL on %s:%d (%s): wait until it is through, end it, "+
			"or name another server in WATERMILL_TEST_POSTGRES_URL", config.Host, config.Port, claimant(ctx, conn))
	}
	if err != nil {
		_ = conn.Close(ctx) // it has nothing
		return nil, err
	}
	return conn, nil
}

// claimant says who has the lock.
func claimant(ctx context.Context, conn *pgx.Conn) string {
	var pid int
	var since time.Time
	err := conn.QueryRow(ctx, `
		SELECT a.pid, a.backend_start FROM pg_locks l JOIN pg_stat_activity a USING (pid)
		WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
		  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
		  AND l.classid::bigint << 32 | l.objid::bigint = $1`, int64(claimKey)).Scan(&pid, &since)
	if err != nil { // it may just have ended
		return "whose session is not to be seen"
	}
	return fmt.Sprintf("its session is process %d of the server, since %s", pid, since.Format(time.DateTime))
}

// drop removes the database, whatever an interrupted run has left open in it.
var drop = []string{
	"SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active AND database = '" + databaseName + "'",
	"SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active AND database = '" + databaseName + "'",
	"DROP DATABASE IF EXISTS " + databaseName + " WITH (FORCE)",
}

// dropDatabase drops the database if it is this run's: without the claim it is another's.
func dropDatabase(ctx context.Context) error {
	if claim == nil {
		return nil
	}
	mine := claim
	claim = nil
	if mine.IsClosed() { // as after an interrupt in the middle of a statement, or a restart of the server
		return fmt.Errorf("the session that had the server for this run was lost: database %s is left to the next", databaseName)
	}
	err := execute(ctx, mine, drop...)
	return errors.Join(err, mine.Close(ctx))
}

func execute(ctx context.Context, conn *pgx.Conn, statements ...string) error {
	for _, statement := range statements {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return err
		}
	}
	return nil
}

// maxConns suffices for 64 clients and what relays need.
const maxConns = 80

// connect makes what a peer needs.
func connect(ctx context.Context, url, topic string, concurrency int) (peer.Env, error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return peer.Env{}, err
	}
	config.MaxConns = maxConns
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return peer.Env{}, err
	}
	db := stdlib.OpenDB(*config.ConnConfig.Copy())
	db.SetMaxOpenConns(maxConns)
	db.SetMaxIdleConns(maxConns)
	return peer.Env{URL: url, Pool: pool, DB: db, Topic: topic, Concurrency: concurrency}, nil
}

// disconnect ends what connect has begun, also where that came to nothing.
func disconnect(env peer.Env) {
	if env.DB != nil {
		_ = env.DB.Close() // there is nothing left to lose
	}
	if env.Pool != nil {
		env.Pool.Close()
	}
}
