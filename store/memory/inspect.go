package memory

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/internal/claim"
)

// DeleteProcessedBefore implements [outbox.Store].
func (s *Store) DeleteProcessedBefore(_ context.Context, t time.Time) (int64, error) {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	n := int64(0)
	for id, row := range s.db.archive {
		if row.Status == outbox.StatusProcessed && row.ProcessedAt.Before(t) {
			delete(s.db.archive, id)
			n++
		}
	}
	return n, nil
}

// ListFailed implements [outbox.Inspector].
func (s *Store) ListFailed(_ context.Context, afterID string, limit int) ([]outbox.Message, error) {
	after := int64(0)
	if afterID != "" {
		var err error
		if after, err = claim.RowID(afterID); err != nil {
			return nil, err
		}
	}
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	var page []outbox.Message
	for _, row := range s.db.sorted(s.db.archive) {
		if len(page) < limit && row.Status == outbox.StatusFailed && rowID(row) > after {
			page = append(page, *row)
		}
	}
	return page, nil
}

// CountFailed implements [outbox.Inspector].
func (s *Store) CountFailed(context.Context) (int64, error) {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	return s.db.countFailed(), nil
}

func (db *database) countFailed() int64 {
	n := int64(0)
	for _, row := range db.archive {
		if row.Status == outbox.StatusFailed {
			n++
		}
	}
	return n
}

// Requeue implements [outbox.Inspector].
func (s *Store) Requeue(_ context.Context, ids ...string) (int64, error) {
	found := int64(0)
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	for _, row := range s.db.takeFailed(ids) {
		again := *row
		s.db.lastID++
		again.ID = strconv.FormatInt(s.db.lastID, 10)
		again.Status, again.Retries, again.LastError = outbox.StatusPending, 0, ""
		again.AvailableAt, again.ProcessedAt = time.Time{}, time.Time{}
		s.db.commitRow(&again)
		found++
	}
	s.db.notify()
	return found, nil
}

// Discard implements [outbox.Inspector].
func (s *Store) Discard(_ context.Context, ids ...string) (int64, error) {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	return int64(len(s.db.takeFailed(ids))), nil
}

func (db *database) takeFailed(ids []string) []*outbox.Message {
	var taken []*outbox.Message
	for _, id := range ids {
		n, err := claim.RowID(id)
		if row := db.archive[n]; err == nil && row != nil && row.Status == outbox.StatusFailed {
			delete(db.archive, n)
			taken = append(taken, row)
		}
	}
	return taken
}

// Stats implements [outbox.StatsReporter].
func (s *Store) Stats(context.Context) (outbox.Stats, error) {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	stats := outbox.Stats{
		Pending: int64(len(s.db.messages)), Failed: s.db.countFailed(), PendingByTopic: map[string]int64{},
	}
	for _, row := range s.db.messages {
		stats.PendingByTopic[row.Topic]++
		since := row.CreatedAt
		if row.Retries == 0 && !row.AvailableAt.IsZero() {
			since = row.AvailableAt
		}
		stats.OldestAge = max(stats.OldestAge, s.db.now().Sub(since))
	}
	return stats, nil
}

// Pending returns up to limit messages that wait to be published, by id, without claiming them: the committed ones and,
// if tx is not nil, those saved in it. It is for tests; see package outboxtest.
func (s *Store) Pending(_ context.Context, tx any, limit int) ([]outbox.Message, error) {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	rows := s.db.sorted(s.db.messages)
	if tx != nil {
		t, err := s.txOf(tx)
		if err != nil {
			return nil, err
		}
		if t.ended() {
			return nil, ErrTxDone
		}
		rows = append(rows, t.saved...)
		slices.SortFunc(rows, func(a, b *outbox.Message) int { return cmp.Compare(rowID(a), rowID(b)) })
	}
	var msgs []outbox.Message
	for _, row := range rows[:min(max(limit, 0), len(rows))] {
		m := *row
		m.Headers = maps.Clone(row.Headers)
		msgs = append(msgs, m)
	}
	return msgs, nil
}
