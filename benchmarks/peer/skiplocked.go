package peer

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
)

// What most people have: a table and a loop. A batch is published by as many goroutines as the other peers have, which
// gives up the order within a key; so does SKIP LOCKED where two relays run.
var (
	SkipLockedStatus = Peer{
		Name: "SKIP LOCKED, status",
		About: "a hand-written relay: `UPDATE ... SET status = 'processing' WHERE id IN (SELECT ... FOR UPDATE SKIP LOCKED LIMIT 1000) " +
			"RETURNING`, publish, `UPDATE ... SET status = 'processed'`; a partial index on pending rows; looks every 5 ms when idle",
		New: func(_ context.Context, env Env) (Outbox, error) {
			return &skipLocked{env: env, table: "by_status", batch: claimByStatus}, nil
		},
	}
	SkipLockedDelete = Peer{
		Name: "SKIP LOCKED, delete",
		About: "a hand-written relay: `BEGIN`, `DELETE ... WHERE id IN (SELECT ... FOR UPDATE SKIP LOCKED LIMIT 1000) RETURNING`, publish, " +
			"`COMMIT`; looks every 5 ms when idle",
		New: func(_ context.Context, env Env) (Outbox, error) {
			return &skipLocked{env: env, table: "by_delete", batch: deleteInTransaction}, nil
		},
	}
)

type skipLocked struct {
	env   Env
	table string
	batch func(ctx context.Context, o *skipLocked, publisher message.Publisher) (published int, err error)
}

func (o *skipLocked) Create(ctx context.Context) error {
	_, err := o.env.Pool.Exec(ctx, fmt.Sprintf(`
		DROP TABLE IF EXISTS %[1]s;
		CREATE TABLE %[1]s (
			id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, uuid text NOT NULL, topic text NOT NULL, key text NOT NULL,
			payload bytea NOT NULL, created_at timestamptz NOT NULL DEFAULT now(), status text NOT NULL DEFAULT 'pending'
		)`, o.table))
	if err == nil && o.table == "by_status" {
		_, err = o.env.Pool.Exec(ctx, "CREATE INDEX ON by_status (id) WHERE status = 'pending'")
	}
	return err
}

func (o *skipLocked) Commit(ctx context.Context, msgs ...Message) error {
	return pgx.BeginFunc(ctx, o.env.Pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, InsertOrder, msgs[0].Key); err != nil {
			return err
		}
		return insertByHand(ctx, tx, o.table, o.env.Topic, msgs)
	})
}

// insertByHand writes messages in one round trip: a plain INSERT where there is one.
func insertByHand(ctx context.Context, tx pgx.Tx, table, topic string, msgs []Message) error {
	if len(msgs) == 1 {
		_, err := tx.Exec(ctx, "INSERT INTO "+table+" (uuid, topic, key, payload) VALUES ($1, $2, $3, $4)",
			msgs[0].UUID, topic, msgs[0].Key, msgs[0].Payload)
		return err
	}
	uuids, keys, payloads := make([]string, len(msgs)), make([]string, len(msgs)), make([][]byte, len(msgs))
	for i, m := range msgs {
		uuids[i], keys[i], payloads[i] = m.UUID, m.Key, m.Payload
	}
	_, err := tx.Exec(ctx, "INSERT INTO "+table+` (uuid, topic, key, payload)
		SELECT uuid, $2, key, payload FROM unnest($1::text[], $3::text[], $4::bytea[]) AS m (uuid, key, payload)`,
		uuids, topic, keys, payloads)
	return err
}

func (o *skipLocked) Fill(ctx context.Context, backlog Backlog) error {
	_, err := o.env.Pool.Exec(ctx, fmt.Sprintf(`
		INSERT INTO %s (uuid, topic, key, payload)
		SELECT gen_random_uuid(), $1, %s, convert_to(%s, 'UTF8') FROM generate_series(0, $2::int - 1) i`,
		o.table, backlog.keySQL(), backlog.payloadSQL()), o.env.Topic, backlog.N)
	return err
}

const (
	batchSize = 1000
	idlePoll  = 5 * time.Millisecond
)

func (o *skipLocked) Relay(ctx context.Context, publisher message.Publisher) error {
	for ctx.Err() == nil {
		published, err := o.batch(ctx, o, publisher)
		switch {
		case ctx.Err() != nil:
			return nil //nolint:nilerr // it was to end
		case err != nil:
			return err
		case published == 0:
			select {
			case <-ctx.Done():
			case <-time.After(idlePoll):
			}
		}
	}
	return nil
}

func claimByStatus(ctx context.Context, o *skipLocked, publisher message.Publisher) (int, error) {
	rows, err := o.env.Pool.Query(ctx, `
		UPDATE by_status SET status = 'processing'
		WHERE id IN (SELECT id FROM by_status WHERE status = 'pending' ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED)
		RETURNING id, uuid, topic, key, payload`, batchSize)
	if err != nil {
		return 0, err
	}
	ids, err := o.publish(rows, publisher)
	if err != nil || len(ids) == 0 {
		return 0, err
	}
	_, err = o.env.Pool.Exec(ctx, "UPDATE by_status SET status = 'processed' WHERE id = ANY ($1)", ids)
	return len(ids), err
}

func deleteInTransaction(ctx context.Context, o *skipLocked, publisher message.Publisher) (published int, err error) {
	err = pgx.BeginFunc(ctx, o.env.Pool, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `
			DELETE FROM by_delete
			WHERE id IN (SELECT id FROM by_delete ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED)
			RETURNING id, uuid, topic, key, payload`, batchSize)
		if err != nil {
			return err
		}
		ids, err := o.publish(rows, publisher)
		published = len(ids)
		return err
	})
	return published, err
}

// publish publishes rows by as many goroutines as there may be, each with a share of them.
func (o *skipLocked) publish(rows pgx.Rows, publisher message.Publisher) (ids []int64, err error) {
	var msgs []*message.Message
	var id int64
	var uuid, topic, key string
	var payload []byte
	_, err = pgx.ForEachRow(rows, []any{&id, &uuid, &topic, &key, &payload}, func() error {
		msg := message.NewMessage(uuid, payload)
		setKey(msg, key)
		ids, msgs, payload = append(ids, id), append(msgs, msg), nil
		return nil
	})
	if err != nil {
		return nil, err
	}
	return ids, publishConcurrently(publisher, topic, msgs, o.env.Concurrency)
}

func publishConcurrently(publisher message.Publisher, topic string, msgs []*message.Message, concurrency int) error {
	var all sync.WaitGroup
	errs := make(chan error, concurrency)
	for worker := range min(concurrency, len(msgs)) {
		all.Go(func() {
			for i := worker; i < len(msgs); i += concurrency {
				if err := publisher.Publish(topic, msgs[i]); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	all.Wait()
	close(errs)
	return <-errs // nil where there is none
}

func (o *skipLocked) Close() error { return nil }
