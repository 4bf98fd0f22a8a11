package sqlstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/watermill-outbox/outbox"
)

// maxChunkBytes is how large one INSERT may be; a larger call becomes several under a savepoint.
const maxChunkBytes = 64 << 20

// Save implements outbox.Store: one statement, whatever the number of messages, unless they are very many or large.
func (e *Engine) Save(ctx context.Context, tx any, msgs ...outbox.Message) error {
	if len(msgs) == 0 {
		return nil
	}
	if tx == nil {
		return e.RunInTx(ctx, func(ctx context.Context, own any) error { return e.Save(ctx, own, msgs...) })
	}
	conn, err := e.db.AsTx(tx)
	if err != nil {
		return fmt.Errorf("%s: %w", e.dialect.Name, err)
	}
	if err := ctx.Err(); err != nil {
		return e.fail("save", err)
	}
	if e.dialect.TxIsGone != nil && ctx.Done() != nil {
		ctx = context.WithoutCancel(ctx) // a statement that is interrupted may end the transaction
	}
	if err = e.insertAll(ctx, conn, msgs); err != nil && e.dialect.TxIsGone != nil && e.dialect.TxIsGone(ctx, conn) {
		if t, ok := tx.(interface{ Rollback() error }); ok {
			_ = t.Rollback() // from now on it refuses statements, which would commit by themselves
		}
	}
	return err
}

func (e *Engine) insertAll(ctx context.Context, conn Conn, msgs []outbox.Message) error {
	n := e.chunk(msgs)
	if n == len(msgs) {
		return e.insert(ctx, conn, msgs)
	}
	return e.fail("save", savepoint(ctx, conn, func() error {
		for ; len(msgs) > 0; n = e.chunk(msgs) {
			if err := e.insert(ctx, conn, msgs[:n]); err != nil {
				return err
			}
			msgs = msgs[n:]
		}
		return nil
	}))
}

func (e *Engine) insert(ctx context.Context, conn Conn, msgs []outbox.Message) error {
	query, args, err := e.insertion(msgs)
	if err == nil {
		_, err = conn.Exec(ctx, query, args...)
	}
	return e.fail("insert messages", err)
}

// insertion returns one statement for all of msgs.
func (e *Engine) insertion(msgs []outbox.Message) (query string, args []any, err error) {
	name := "insert"
	if e.dialect.Arrays && len(msgs) > 1 {
		name = "insert_many"
		if args, err = e.columns(msgs); err != nil {
			return "", nil, err
		}
	} else {
		args = make([]any, 0, 6*len(msgs)+1)
		for i := range msgs {
			if args, err = e.appendRow(args, &msgs[i]); err != nil {
				return "", nil, err
			}
		}
	}
	switch {
	case e.notifies():
		return e.sql[name+notifying], append(args, e.dialect.Channel), nil
	case name == "insert" && len(msgs) > 1:
		return repeatRow(e.sql[name], len(msgs)), args, nil
	}
	return e.sql[name], args, nil
}

// notifyInterval is the shortest time between two wake-ups of this process: all transactions of a database that notify
// commit one after another, and a relay polls for longer than that after any activity.
const notifyInterval = 100 * time.Millisecond

// notifies tells whether this INSERT is to wake the relays.
func (e *Engine) notifies() bool {
	if e.dialect.Channel == "" {
		return false
	}
	now, last := e.tick(), e.notified.Load()
	return now-last >= int64(notifyInterval) && e.notified.CompareAndSwap(last, now)
}

// columns are the arguments of insert_many.
func (e *Engine) columns(msgs []outbox.Message) ([]any, error) {
	n := len(msgs)
	uuids, topics, keys := make([]string, n), make([]string, n), make([]string, n)
	payloads, headers, due := make([][]byte, n), make([]string, n), make([]string, n)
	for i := range msgs {
		m := &msgs[i]
		text, err := encodeHeaders(m.Headers)
		if err != nil {
			return nil, fmt.Errorf("encode the headers: %w", err)
		}
		uuids[i], topics[i], keys[i], payloads[i], headers[i] = uuidOf(m), m.Topic, m.Key, payloadOf(m), text
		if !m.AvailableAt.IsZero() {
			due[i] = m.AvailableAt.UTC().Format(time.RFC3339Nano)
		}
	}
	return e.dialect.Batch(uuids, topics, keys, payloads, headers, due), nil
}

// chunk returns how many of msgs one INSERT can take.
func (e *Engine) chunk(msgs []outbox.Message) int {
	if len(msgs) == 1 {
		return 1
	}
	bytes := 0
	for i := range msgs {
		if bytes += msgs[i].Size(); i > 0 && (i >= e.dialect.MaxRows || bytes > maxChunkBytes) {
			return i
		}
	}
	return len(msgs)
}

// savepoint runs fn so that none of its statements remains if it fails, even if the caller commits nevertheless.
func savepoint(ctx context.Context, conn Conn, fn func() error) error {
	if _, err := conn.Exec(ctx, "SAVEPOINT outbox_publish"); err != nil {
		return err
	}
	err := fn()
	end := "RELEASE SAVEPOINT outbox_publish"
	if err != nil {
		end = "ROLLBACK TO SAVEPOINT outbox_publish"
	}
	_, endErr := conn.Exec(context.WithoutCancel(ctx), end)
	return errors.Join(err, endErr)
}
