package sqlstore

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/internal/claim"
)

// Settle implements outbox.LeasedStore. Rows are found by (id, uuid), and every statement has the same effect when it is
// run again: a caller who did not hear of a commit tries again.
func (e *Engine) Settle(ctx context.Context, outcomes ...outbox.Outcome) error {
	if len(outcomes) == 0 {
		return nil
	}
	if err := claim.CheckOutcomes(outcomes); err != nil {
		return e.fail("settle", err)
	}
	defer e.calling()()
	known, unknown := e.claimed(outcomes)
	if err := e.write(ctx, known); err != nil {
		return e.fail("settle", err)
	}
	e.mu.Lock()
	for _, o := range outcomes {
		delete(e.orphans, o.ID)
	}
	for _, s := range known {
		switch {
		case !e.isOfThisHistory(s.msg.ID): // the row's id may be another message's now
		case s.outcome.Status == outbox.StatusPending:
			if m, _ := e.inQueue(s.msg.ID); m != nil {
				e.queue.Postpone(s.id, e.tick()+int64(s.outcome.RetryAfter))
			}
		default:
			e.queue.Done(s.id)
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
	id      int64 // of the row
}

func (e *Engine) claimed(outcomes []outbox.Outcome) (known []settlement, unknown []string) {
	known = make([]settlement, 0, len(outcomes))
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, o := range outcomes {
		if m := e.claimedMessage(o.ID); m != nil {
			known = append(known, settlement{o, m, messageID(m)})
		} else {
			unknown = append(unknown, o.ID)
		}
	}
	if len(e.orphans) > 0 {
		known = onePerRow(known)
	}
	return known, unknown
}

// onePerRow leaves one outcome where a row has several, of claims under leases that were lost: what was published or set aside
// is done, whatever else is told, and the newest claim is the one that goes on. A statement that gets a row twice would fail,
// or do the half.
func onePerRow(all []settlement) []settlement {
	type row struct {
		id   int64
		uuid string // by which it is told from one that had its id before a backup was restored
	}
	kept, at := all[:0], make(map[row]int, len(all))
	for _, s := range all {
		of := row{s.id, s.msg.UUID}
		i, again := at[of]
		switch {
		case !again:
			at[of] = len(kept)
			kept = append(kept, s)
		case cmp.Or(cmp.Compare(s.finality(), kept[i].finality()),
			cmp.Compare(claim.Generation(s.msg.ID), claim.Generation(kept[i].msg.ID))) > 0:
			kept[i] = s
		}
	}
	return kept
}

// finality orders outcomes by how much they end.
func (s *settlement) finality() int {
	return slices.Index([]outbox.MessageStatus{outbox.StatusPending, outbox.StatusFailed, outbox.StatusProcessed}, s.outcome.Status)
}

// claimedMessage returns a claimed message, also if its lease was lost since. The caller holds mu.
func (e *Engine) claimedMessage(id string) *outbox.Message {
	if m, _ := e.inQueue(id); m != nil {
		return m
	}
	return e.orphans[id]
}

// write runs the statements for known: one DELETE, where all were published and none is to be kept.
func (e *Engine) write(ctx context.Context, known []settlement) error {
	gone, archived, retried := newMarked(len(known)), newMarked(0), newMarked(0)
	for _, s := range known {
		switch o := s.outcome; {
		case o.Status == outbox.StatusPending && o.Err != nil:
			retried.add(s)
		case o.Status == outbox.StatusPending: // not at fault: the wait is kept in memory alone
		case o.Status == outbox.StatusFailed || o.Archive:
			archived.add(s)
			gone.identify(s)
		default:
			gone.identify(s)
		}
	}
	if len(archived.ids) == 0 && len(retried.ids) == 0 {
		return e.execBatch(ctx, e.db, "delete", gone.ids, gone.uuids)
	}
	if e.dialect.Arrays {
		_, err := e.db.Exec(ctx, e.sql["settle"], e.dialect.Batch(
			archived.ids, archived.uuids, archived.statuses, archived.retries, archived.errs,
			gone.ids, gone.uuids,
			retried.ids, retried.uuids, retried.waits, retried.retries, retried.errs,
		)...)
		return err
	}
	return e.inTx(ctx, func(tx Conn) error {
		err := e.execBatch(ctx, tx, "archive", archived.ids, archived.uuids, archived.statuses, archived.retries, archived.errs)
		if err != nil {
			return err
		}
		if err := e.execBatch(ctx, tx, "delete", gone.ids, gone.uuids); err != nil {
			return err
		}
		return e.execBatch(ctx, tx, "retry", retried.ids, retried.uuids, retried.waits, retried.retries, retried.errs)
	})
}

// marked are the columns of statements that settle.
type marked struct {
	ids                   []int64
	uuids, statuses, errs []string
	waits, retries        []int64 // waits in milliseconds
}

// newMarked makes columns of no rows, with room for n to be identified: nil would be NULL.
func newMarked(n int) marked {
	return marked{
		ids: make([]int64, 0, n), uuids: make([]string, 0, n),
		statuses: []string{}, errs: []string{}, waits: []int64{}, retries: []int64{},
	}
}

func (m *marked) identify(s settlement) {
	m.ids, m.uuids = append(m.ids, s.id), append(m.uuids, s.msg.UUID)
}

func (m *marked) add(s settlement) {
	retries, text := s.msg.Retries, s.msg.LastError
	if s.outcome.Err != nil {
		retries, text = min(retries+1, math.MaxInt32), errorText(s.outcome.Err)
	}
	m.identify(s)
	m.statuses, m.errs = append(m.statuses, string(s.outcome.Status)), append(m.errs, text)
	m.waits, m.retries = append(m.waits, s.outcome.RetryAfter.Milliseconds()), append(m.retries, int64(retries))
}

// execBatch runs a statement for all rows of columns, if there are any.
func (e *Engine) execBatch(ctx context.Context, conn Conn, query string, ids []int64, columns ...any) error {
	if len(ids) == 0 {
		return nil
	}
	_, err := conn.Exec(ctx, e.sql[query], e.dialect.Batch(append([]any{ids}, columns...)...)...)
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
