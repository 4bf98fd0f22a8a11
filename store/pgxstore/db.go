package pgxstore

import (
	"context"
	"fmt"
	"reflect"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/internal/sqlstore"
)

// querier is a pool or a transaction.
type querier interface {
	Exec(ctx context.Context, query string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, query string, args ...any) (pgx.Rows, error)
}

// conn is a sqlstore.Conn.
type conn struct{ q querier }

func (c conn) Exec(ctx context.Context, query string, args ...any) (int64, error) {
	tag, err := c.q.Exec(ctx, query, args...)
	return tag.RowsAffected(), err
}

func (c conn) Query(ctx context.Context, query string, args []any, each func(sqlstore.Scanner) (bool, error)) error {
	rows, err := c.q.Query(ctx, query, args...)
	if err != nil {
		return err
	}
	return eachRow(rows, each)
}

func eachRow(rows pgx.Rows, each func(sqlstore.Scanner) (bool, error)) error {
	defer rows.Close()
	for rows.Next() {
		more, err := each(rows)
		if err != nil || !more {
			return err
		}
	}
	return rows.Err()
}

// poolDB is a sqlstore.DB.
type poolDB struct{ pool *pgxpool.Pool }

func (d poolDB) Exec(ctx context.Context, query string, args ...any) (int64, error) {
	return conn{d.pool}.Exec(ctx, query, args...)
}

func (d poolDB) Query(ctx context.Context, query string, args []any, each func(sqlstore.Scanner) (bool, error)) error {
	return conn{d.pool}.Query(ctx, query, args, each)
}

func (d poolDB) Begin(ctx context.Context) (sqlstore.Tx, error) {
	tx, err := d.pool.Begin(ctx)
	if err != nil {
		return nil, err
	}
	return ownTx{conn{tx}, tx}, nil
}

// Snapshot makes two round trips, whatever the number of queries, or one where there is no second.
func (d poolDB) Snapshot(
	ctx context.Context, first []sqlstore.Query, second func() ([]sqlstore.Query, error),
) error {
	conn, err := d.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	if err = snapshot(ctx, conn, first, second); err != nil {
		endCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), sqlstore.EndTimeout)
		defer cancel()
		_, _ = conn.Exec(endCtx, "rollback") // else the pool would close the connection
	}
	return err
}

func snapshot(
	ctx context.Context, conn *pgxpool.Conn, first []sqlstore.Query, second func() ([]sqlstore.Query, error),
) error {
	const begin, end = "begin read only, isolation level repeatable read", "commit"
	if second == nil {
		return pipeline(ctx, conn, begin, first, end)
	}
	if err := pipeline(ctx, conn, begin, first, ""); err != nil {
		return err
	}
	then, err := second()
	if err != nil {
		return err
	}
	return pipeline(ctx, conn, "", then, end)
}

// pipeline sends statements all at once, and then reads what they return.
func pipeline(ctx context.Context, conn *pgxpool.Conn, begin string, queries []sqlstore.Query, end string) error {
	batch := &pgx.Batch{}
	if begin != "" {
		batch.Queue(begin)
	}
	for _, q := range queries {
		batch.Queue(q.SQL, q.Args...).Query(func(rows pgx.Rows) error { return eachRow(rows, q.Each) })
	}
	if end != "" {
		batch.Queue(end)
	}
	return conn.SendBatch(ctx, batch).Close()
}

func (d poolDB) AsTx(tx any) (sqlstore.Conn, error) {
	t, ok := tx.(pgx.Tx)
	if !ok {
		return nil, fmt.Errorf("a %T: %w: it takes a pgx.Tx; on a pool or a connection each statement would commit by itself",
			tx, outbox.ErrInvalidTx)
	}
	if v := reflect.ValueOf(tx); v.Kind() == reflect.Pointer && v.IsNil() {
		return nil, fmt.Errorf("a nil %T: %w", tx, outbox.ErrInvalidTx)
	}
	return conn{t}, nil
}

func (d poolDB) IsHandle(v any) bool {
	pool, ok := v.(*pgxpool.Pool)
	return ok && pool == d.pool
}

func (d poolDB) Close() error { return nil }

// ownTx is a transaction of the engine's own. It ends on a context of its own.
type ownTx struct {
	conn
	tx pgx.Tx
}

func (t ownTx) Handle() any { return t.tx }

func (t ownTx) Commit() error {
	ctx, cancel := context.WithTimeout(context.Background(), sqlstore.EndTimeout)
	defer cancel()
	return t.tx.Commit(ctx)
}

func (t ownTx) Rollback() error {
	ctx, cancel := context.WithTimeout(context.Background(), sqlstore.EndTimeout)
	defer cancel()
	return t.tx.Rollback(ctx)
}
