package sqlstore

import (
	"context"
	"slices"
	"strconv"
	"time"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/internal/claim"
)

const (
	// DefaultSweepInterval is how often the table is searched for rows that the reads have missed.
	DefaultSweepInterval = 30 * time.Second
	// sweepRows is how many rows are looked at in one read, without payloads.
	sweepRows = 5000
)

// sweepOn is the net below the reads: again and again it looks for rows up to the cursor that nobody knows of, and has the
// reads go back to the first. Somebody inserted them under old ids, or took their delay away. It is a goroutine of its own,
// because what is left of deleted rows may make it slow.
func (e *Engine) sweepOn(ctx context.Context) {
	ticker := time.NewTicker(e.sweepInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			for after, more := int64(0), true; more; {
				after, more = e.sweep(ctx, after)
			}
			e.tellAll()
		}
	}
}

// sweep looks at a chunk of rows above after.
func (e *Engine) sweep(ctx context.Context, after int64) (last int64, more bool) {
	ctx, cancel := context.WithTimeout(ctx, e.patience())
	defer cancel()
	known, err := e.sweepRead(ctx, after)
	if err != nil {
		return 0, false // the next one comes in any case
	}
	e.claimMu.Lock()
	defer e.claimMu.Unlock()
	e.mu.Lock()
	at := slices.IndexFunc(known.rows, e.missed)
	e.mu.Unlock()
	if at < 0 {
		return known.last, known.cut
	}
	found := false // that one may have been settled since: it is looked at again while nothing settled is forgotten
	err = e.reading(func() (err error) {
		known, err = e.outline(ctx, known.rows[at].ID-1, e.reader.Cursor(), sweepRows, e.dueBefore())
		return err
	}, func() {
		if at = slices.IndexFunc(known.rows, e.missed); at < 0 {
			return
		}
		found = true
		id := known.rows[at].ID
		e.sweepFinds.Add(1)
		e.reader.Back(id - 1)
		e.events = append(e.events, outbox.MissedEvent{ID: claim.WithGeneration(strconv.FormatInt(id, 10), e.generation)})
	})
	return known.last, known.cut && err == nil && !found
}

func (e *Engine) sweepRead(ctx context.Context, after int64) (outline, error) {
	e.claimMu.Lock()
	cursor, due := e.reader.Cursor(), e.dueBefore()
	e.claimMu.Unlock()
	return e.outline(ctx, after, cursor, sweepRows, due)
}

// missed tells whether nobody knows of a row that this instance should have read. The caller holds both locks.
func (e *Engine) missed(r claim.Row) bool {
	_, held := e.leases[r.Slot]
	return held && e.queue.Misses(r) && !e.reader.Expects(r.Slot, r.ID)
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
