package sqlstore

import (
	"context"
	"time"

	"github.com/watermill-outbox/outbox/internal/claim"
)

const (
	// DefaultSweepInterval is how often the table is searched for rows that the reads have missed.
	DefaultSweepInterval = 30 * time.Second
	// sweepRows is how many rows one Claim looks at; it reads no payloads.
	sweepRows = 5000
)

// sweep is the net below the reads: it looks, a chunk at a time, for rows up to the cursor that nobody knows of, and has
// the reads go back to the first. Somebody inserted them under old ids, took their delay away, or reset the sequence.
// The caller holds claimMu.
func (e *Engine) sweep(ctx context.Context) error {
	if time.Now().Before(e.nextSweep) {
		return nil
	}
	var known outline
	return e.reading(func() (err error) {
		known, err = e.outline(ctx, e.swept, e.reader.Cursor(), sweepRows, e.dueBefore())
		return err
	}, func() {
		e.swept = known.last
		if !known.cut {
			e.swept, e.nextSweep = 0, time.Now().Add(e.sweepInterval)
		}
		for _, r := range known.rows {
			if _, held := e.leases[r.Slot]; held && e.queue.Misses(r) && !e.reader.Expects(r.Slot, r.ID) {
				e.sweepFinds.Add(1)
				e.reader.Back(r.ID - 1)
				e.swept, e.nextSweep = 0, time.Now().Add(e.sweepInterval)
				return
			}
		}
	})
}

// SweepFinds returns how often sweeps of the store, which embeds an Engine, have found something. It is for tests: only an
// intervention by hand should make it grow.
func SweepFinds(store any) int64 {
	return store.(interface{ finds() int64 }).finds() //nolint:forcetypeassert // see above
}

func (e *Engine) finds() int64 { return e.sweepFinds.Load() }

// outline is what the queue needs of rows, without their payloads, ascending. Delayed ones that were not tried yet are
// left out: nobody is to know of them before they are due.
type outline struct {
	rows []claim.Row
	last int64 // the last id that was read
	cut  bool  // there may be more
}

// dueBefore is a time before which readDue has read all delayed rows. It is not zero.
func (e *Engine) dueBefore() time.Time {
	if e.due.at.IsZero() {
		return time.Unix(0, 0)
	}
	return e.due.at.Add(-time.Microsecond) // many may be due in one
}

// outline reads up to limit rows above after, up to through, and leaves out those that are delayed beyond now.
func (e *Engine) outline(ctx context.Context, after, through int64, limit int, now time.Time) (outline, error) {
	o, count := outline{last: after}, 0
	err := e.db.Query(ctx, e.sql["sweep"], []any{after, through, limit}, func(s Scanner) (bool, error) {
		r := &row{}
		if err := s.Scan(&r.id, &r.slot, &r.msg.Key, &r.msg.Topic, &r.retries, &r.due); err != nil {
			return false, err
		}
		count, o.last = count+1, r.id
		retries, _ := r.retries.(int64) // what is damaged is told when the row is read whole
		r.msg.Retries = int(retries)
		r.msg.AvailableAt, _ = e.timeFrom(r.due)
		if known, ok := e.rowFor(r, now); ok {
			known.Message = nil
			o.rows = append(o.rows, known)
		}
		return true, nil
	})
	o.cut = count == limit
	return o, err
}
