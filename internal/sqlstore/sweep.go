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
	var rows []claim.Row
	count, last, now := 0, e.swept, e.passedNow()
	return e.reading(func() error {
		return e.db.Query(ctx, e.sql["sweep"], []any{e.swept, e.reader.Cursor(), sweepRows}, func(s Scanner) (bool, error) {
			var r claim.Row
			var retries, due any
			if err := s.Scan(&r.ID, &r.Slot, &r.Key, &r.Topic, &retries, &due); err != nil {
				return false, err
			}
			count, last = count+1, r.ID
			at, err := e.timeFrom(due)
			if untried := retries == int64(0); err == nil && untried && at.After(now) {
				return true, nil // it is delayed, and nobody is to know of it
			}
			rows = append(rows, r)
			return true, nil
		})
	}, func() {
		e.swept = last
		if count < sweepRows {
			e.swept, e.nextSweep = 0, time.Now().Add(e.sweepInterval)
		}
		for _, r := range rows {
			if _, held := e.leases[r.Slot]; held && e.queue.Misses(r) {
				e.reader.Back(r.ID - 1)
				e.swept, e.nextSweep = 0, time.Now().Add(e.sweepInterval)
				return
			}
		}
	})
}
