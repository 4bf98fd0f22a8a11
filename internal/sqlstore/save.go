package sqlstore

import (
	"context"
	"errors"
	"fmt"

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
	if e.dialect.TxIsGone != nil {
		ctx = context.WithoutCancel(ctx) // a statement that is interrupted may end the transaction
	}
	if err = e.insertAll(ctx, conn, e.chunks(msgs)); err != nil && e.dialect.TxIsGone != nil && e.dialect.TxIsGone(ctx, conn) {
		if t, ok := tx.(interface{ Rollback() error }); ok {
			_ = t.Rollback() // from now on it refuses statements, which would commit by themselves
		}
	}
	return err
}

func (e *Engine) insertAll(ctx context.Context, conn Conn, chunks [][]outbox.Message) error {
	if len(chunks) == 1 {
		return e.insert(ctx, conn, chunks[0])
	}
	return e.fail("save", savepoint(ctx, conn, func() error {
		for _, chunk := range chunks {
			if err := e.insert(ctx, conn, chunk); err != nil {
				return err
			}
		}
		return nil
	}))
}

func (e *Engine) insert(ctx context.Context, conn Conn, msgs []outbox.Message) error {
	args := make([]any, 0, 6*len(msgs))
	for i := range msgs {
		rowArgs, err := e.insertArgs(&msgs[i])
		if err != nil {
			return err
		}
		args = append(args, rowArgs...)
	}
	query := e.sql["insert"]
	if len(msgs) > 1 {
		query = repeatRow(query, len(msgs))
	}
	_, err := conn.Exec(ctx, query, args...)
	return e.fail("insert messages", err)
}

// chunks splits msgs into what one INSERT can take.
func (e *Engine) chunks(msgs []outbox.Message) [][]outbox.Message {
	var chunks [][]outbox.Message
	begin, bytes := 0, 0
	for i := range msgs {
		size := msgs[i].Size()
		if i > begin && (i-begin >= e.dialect.MaxRows || bytes+size > maxChunkBytes) {
			chunks = append(chunks, msgs[begin:i])
			begin, bytes = i, 0
		}
		bytes += size
	}
	return append(chunks, msgs[begin:])
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
