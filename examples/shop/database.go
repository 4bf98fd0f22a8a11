package main

import (
	"context"
	_ "embed"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/watermill-outbox/outbox/store/pgxstore"
)

//go:embed schema.sql
var tables string

// openPool returns a pool whose connections find the shop's tables. The outbox names its own in full.
func openPool(ctx context.Context, url, schema string) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, err
	}
	config.ConnConfig.RuntimeParams["search_path"] = schema
	return pgxpool.NewWithConfig(ctx, config)
}

// openStore returns the outbox, and creates all tables that are missing.
func openStore(ctx context.Context, pool *pgxpool.Pool, schema string) (*pgxstore.Store, error) {
	store, err := pgxstore.New(pool, pgxstore.WithSchema(schema))
	if err != nil {
		return nil, err
	}
	if err := createTables(ctx, pool, schema); err != nil {
		return nil, err
	}
	return store, store.Migrate(ctx)
}

// createTables creates the schema and the shop's tables. IF NOT EXISTS does not keep replicas that start at the same time
// from colliding, so one goes after the other. store.Migrate sees to that by itself.
func createTables(ctx context.Context, pool *pgxpool.Pool, schema string) error {
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock(hashtextextended($1, 0))`, schema); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, "CREATE SCHEMA IF NOT EXISTS "+pgx.Identifier{schema}.Sanitize()+";"+tables)
		return err
	})
}
