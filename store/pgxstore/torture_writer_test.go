package pgxstore_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/components/delay"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/watermill-outbox/outbox"
)

// writer changes aggregates and publishes what has happened to them.
type writer struct {
	w      *world
	number int
	random *rand.Rand
	begun  int // transactions
}

var errRollBack = errors.New("the application rolls back")

// run begins one transaction after the other until ctx ends.
func (wr *writer) run(ctx context.Context) {
	for ctx.Err() == nil {
		wr.begun++
		err := wr.transaction(context.WithoutCancel(ctx))
		switch {
		case err == nil:
			wr.w.committed.Add(1)
		case errors.Is(err, errRollBack) || isDeadlock(err):
			wr.w.rolledBack.Add(1)
		default:
			wr.w.fail(fmt.Errorf("writer %d: %w", wr.number, err))
			return
		}
	}
}

// isDeadlock tells of transactions that the server has ended: a savepoint that was rolled back gives locks back, too.
func isDeadlock(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && pgErr.Code == "40P01"
}

func (wr *writer) transaction(ctx context.Context) error {
	tx, err := wr.w.pool.Begin(ctx)
	if err != nil {
		return err
	}
	defer tx.Rollback(ctx) //nolint:errcheck // it has ended already, or what went wrong is being told
	if err := wr.changes(ctx, tx, wr.random.Int64N(aggregates), 0); err != nil {
		return err
	}
	wr.pause()
	switch {
	case wr.w.scenario.prepares && wr.random.IntN(3) == 0:
		return wr.prepare(ctx, tx)
	case wr.random.IntN(10) == 0:
		return errRollBack
	}
	return tx.Commit(ctx)
}

// changes makes changes to a few aggregates, in the order of their ids, some of them within savepoints.
func (wr *writer) changes(ctx context.Context, tx pgx.Tx, aggregate int64, depth int) error {
	for range 1 + wr.random.IntN(3) {
		if aggregate >= aggregates {
			break
		}
		var err error
		if depth < 3 && wr.random.IntN(4) == 0 {
			err = wr.inSavepoint(ctx, tx, aggregate, depth+1)
		} else {
			err = wr.change(ctx, tx, aggregate)
		}
		if err != nil {
			return err
		}
		aggregate += 1 + wr.random.Int64N(10)
		if wr.random.IntN(3) == 0 {
			wr.pause()
		}
	}
	return nil
}

func (wr *writer) inSavepoint(ctx context.Context, tx pgx.Tx, aggregate int64, depth int) error {
	nested, err := tx.Begin(ctx)
	if err != nil {
		return err
	}
	if err := wr.changes(ctx, nested, aggregate, depth); err != nil {
		return err
	}
	if wr.random.IntN(2) == 0 {
		wr.w.partly.Add(1)
		return nested.Rollback(ctx)
	}
	return nested.Commit(ctx)
}

// pause is short mostly, and long now and then.
func (wr *writer) pause() {
	longest := time.Millisecond
	switch n := wr.random.IntN(500); {
	case n == 0:
		longest = time.Second
	case n < 25:
		longest = 20 * time.Millisecond
	}
	time.Sleep(time.Duration(wr.random.Int64N(int64(longest))))
}

// change changes one aggregate under its row lock, and publishes a few messages of it.
func (wr *writer) change(ctx context.Context, tx pgx.Tx, aggregate int64) error {
	schema := wr.w.schema
	var version int64
	err := tx.QueryRow(ctx, "SELECT version FROM "+schema+".aggregates WHERE id = $1 FOR UPDATE", aggregate).Scan(&version)
	if err != nil {
		return err
	}
	var uuids []string
	for range 1 + wr.random.IntN(3) {
		uuids = append(uuids, watermill.NewUUID())
	}
	if err := wr.publish(ctx, tx, fmt.Sprintf("aggregate-%d", aggregate), uuids); err != nil {
		return err
	}
	if wr.random.IntN(4) == 0 {
		wr.pause()
	}
	_, err = tx.Exec(ctx, `
		WITH changed AS (UPDATE `+schema+`.aggregates SET version = version + cardinality($2::text[]) WHERE id = $1)
		INSERT INTO `+schema+`.sent (uuid, aggregate, number)
		SELECT uuid, $1, $3 + number FROM unnest($2::text[]) WITH ORDINALITY AS rows (uuid, number)`, aggregate, uuids, version)
	if err == nil && wr.w.scenario.delays && wr.random.IntN(2) == 0 {
		err = wr.publishUnordered(ctx, tx)
	}
	return err
}

func (wr *writer) publish(ctx context.Context, tx pgx.Tx, key string, uuids []string) error {
	topic := fmt.Sprintf("topic-%d", wr.random.IntN(3))
	way := 2
	if wr.w.scenario.plainSQL {
		way = wr.random.IntN(3)
	}
	switch way {
	case 0:
		_, err := tx.Exec(ctx, `INSERT INTO `+wr.w.schema+`.outbox_messages (uuid, topic, key, payload)
			SELECT uuid, $2, $3, '{}' FROM unnest($1::text[]) WITH ORDINALITY AS rows (uuid, number) ORDER BY number`, uuids, topic, key)
		return err
	case 1:
		_, err := tx.CopyFrom(ctx, pgx.Identifier{wr.w.schema, "outbox_messages"}, []string{"uuid", "topic", "key", "payload"},
			pgx.CopyFromSlice(len(uuids), func(i int) ([]any, error) { return []any{uuids[i], topic, key, []byte("{}")}, nil }))
		return err
	}
	var msgs []*message.Message
	for _, uuid := range uuids {
		msg := message.NewMessage(uuid, []byte("{}"))
		outbox.SetKey(msg, key)
		msgs = append(msgs, msg)
	}
	return wr.w.store.Publisher(tx).Publish(topic, msgs...)
}

// publishUnordered publishes a message without a key, or one of any key that is delayed.
func (wr *writer) publishUnordered(ctx context.Context, tx pgx.Tx) error {
	msg := message.NewMessage(watermill.NewUUID(), []byte("{}"))
	var due *time.Time
	if wr.random.IntN(2) == 0 {
		outbox.SetKey(msg, fmt.Sprintf("aggregate-%d", wr.random.IntN(aggregates)))
		d := time.Duration(wr.random.Int64N(int64(1500 * time.Millisecond)))
		at := time.Now().Add(d)
		due = &at
		msg.Metadata.Set(delay.DelayedForKey, d.String())
	}
	if err := wr.w.store.Publisher(tx).Publish("topic-0", msg); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, "INSERT INTO "+wr.w.schema+".sent (uuid, number, due) VALUES ($1, 0, $2)", msg.UUID, due)
	return err
}

// prepare ends a transaction by the first step of a two-phase commit, and has another session do the second.
func (wr *writer) prepare(ctx context.Context, tx pgx.Tx) error {
	name := fmt.Sprintf("%s-%d-%d", wr.w.schema, wr.number, wr.begun)
	if _, err := tx.Exec(ctx, "PREPARE TRANSACTION '"+name+"'"); err != nil {
		return rolledBackIfFull(err)
	}
	wr.w.prepared.Add(1)
	_ = tx.Rollback(ctx) // there is none any more; it gives the connection back
	wr.pause()
	if wr.random.IntN(5) == 0 {
		_, err := wr.w.pool.Exec(ctx, "ROLLBACK PREPARED '"+name+"'")
		return errors.Join(err, errRollBack)
	}
	_, err := wr.w.pool.Exec(ctx, "COMMIT PREPARED '"+name+"'")
	return err
}

// rolledBackIfFull: the server has room for few prepared transactions, and rolls back others.
func rolledBackIfFull(err error) error {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && pgErr.Code == "53400" {
		return errRollBack
	}
	return err
}
