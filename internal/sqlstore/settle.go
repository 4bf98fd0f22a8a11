package sqlstore

import (
	"context"
	"fmt"
	"strconv"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/internal/claim"
)

// Settle implements outbox.LeasedStore. Rows are found by (id, uuid), and every statement has the same effect when it is
// run again: a caller who did not hear of a commit tries again.
func (e *Engine) Settle(ctx context.Context, outcomes ...outbox.Outcome) error {
	if len(outcomes) == 0 {
		return nil
	}
	known, unknown := e.claimed(outcomes)
	if err := e.write(ctx, known); err != nil {
		return e.fail("settle", err)
	}
	e.mu.Lock()
	for _, s := range known {
		id := messageID(s.msg)
		delete(e.orphans, id)
		if s.outcome.Status == outbox.StatusPending {
			e.queue.Postpone(id, e.tick()+int64(s.outcome.RetryAfter))
		} else {
			e.queue.Done(id)
		}
	}
	e.mu.Unlock()
	if len(unknown) > 0 {
		return fmt.Errorf("%s: settle %q: %w", e.dialect.Name, unknown, outbox.ErrNotClaimed)
	}
	return nil
}

// settlement is an outcome and the message it is for.
type settlement struct {
	outcome outbox.Outcome
	msg     *outbox.Message
}

func (e *Engine) claimed(outcomes []outbox.Outcome) (known []settlement, unknown []string) {
	known = make([]settlement, 0, len(outcomes))
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, o := range outcomes {
		if m := e.claimedMessage(o.ID); m != nil {
			known = append(known, settlement{o, m})
		} else {
			unknown = append(unknown, o.ID)
		}
	}
	return known, unknown
}

// claimedMessage returns a claimed message, also if its lease was lost since. The caller holds mu.
func (e *Engine) claimedMessage(id string) *outbox.Message {
	n, err := strconv.ParseInt(id, 10, 64)
	if err != nil {
		return nil
	}
	if m, _, ok := e.queue.Get(n); ok {
		return m
	}
	return e.orphans[n]
}

// write runs the statements for known: one DELETE, where all were published and none is to be kept.
func (e *Engine) write(ctx context.Context, known []settlement) error {
	var gone jsonObject
	var archived, retried jsonArray
	for _, s := range known {
		retries, text := s.msg.Retries, s.msg.LastError
		if s.outcome.Err != nil {
			retries, text = retries+1, errorText(s.outcome.Err)
		}
		switch o := s.outcome; {
		case o.Status == outbox.StatusPending && o.Err != nil:
			retried = retried.with(s.msg, o.RetryAfter.Milliseconds(), int64(retries), text)
		case o.Status == outbox.StatusPending: // not at fault: the wait is kept in memory alone
		case o.Status == outbox.StatusFailed || o.Archive:
			archived = archived.with(s.msg, string(o.Status), int64(retries), text)
			gone = gone.with(s.msg)
		default:
			gone = gone.with(s.msg)
		}
	}
	if archived == nil && retried == nil {
		return e.execJSON(ctx, e.db, "delete", gone)
	}
	return e.inTx(ctx, func(tx Conn) error {
		if err := e.execJSON(ctx, tx, "archive", archived); err != nil {
			return err
		}
		if err := e.execJSON(ctx, tx, "delete", gone); err != nil {
			return err
		}
		return e.execJSON(ctx, tx, "retry", retried)
	})
}

// execJSON runs a statement whose argument is JSON, if there is any.
func (e *Engine) execJSON(ctx context.Context, conn Conn, query string, arg interface{ text() string }) error {
	text := arg.text()
	if text == "" {
		return nil
	}
	_, err := conn.Exec(ctx, e.sql[query], text)
	return err
}

// MarkProcessed implements outbox.Store.
func (e *Engine) MarkProcessed(ctx context.Context, ids ...string) error {
	return e.Settle(ctx, claim.ProcessedByHand(ids)...)
}

// MarkFailed implements outbox.Store, with the retries and backoff of a Forwarder made without options.
func (e *Engine) MarkFailed(ctx context.Context, id string, err error) error {
	e.mu.Lock()
	m := e.claimedMessage(id)
	e.mu.Unlock()
	if m == nil {
		return fmt.Errorf("%s: mark %q as failed: %w", e.dialect.Name, id, outbox.ErrNotClaimed)
	}
	return e.Settle(ctx, claim.FailedByHand(m, err))
}
