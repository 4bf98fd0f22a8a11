package main

import (
	"cmp"
	"context"
	"fmt"
	"net/url"
	"os"

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

// createDatabase creates the database anew, and returns its URL.
func createDatabase(ctx context.Context) (string, error) {
	of, err := url.Parse(postgresURL())
	if err != nil {
		return "", fmt.Errorf("WATERMILL_TEST_POSTGRES_URL is to be a URL: %w", err)
	}
	if err := dropDatabase(ctx); err != nil {
		return "", err
	}
	of.Path = "/" + databaseName
	return of.String(), onServer(ctx, "CREATE DATABASE "+databaseName)
}

func dropDatabase(ctx context.Context) error {
	return onServer(ctx,
		"SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active AND database = '"+databaseName+"'",
		"SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active AND database = '"+databaseName+"'",
		"DROP DATABASE IF EXISTS "+databaseName+" WITH (FORCE)")
}

func onServer(ctx context.Context, statements ...string) error {
	conn, err := pgx.Connect(ctx, postgresURL())
	if err != nil {
		return fmt.Errorf("no PostgreSQL: run `make services`, or name one in WATERMILL_TEST_POSTGRES_URL: %w", err)
	}
	defer conn.Close(ctx) //nolint:errcheck // it has done what it was for
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

func disconnect(env peer.Env) {
	_ = env.DB.Close() // there is nothing left to lose
	env.Pool.Close()
}
