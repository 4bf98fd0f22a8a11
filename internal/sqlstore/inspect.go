package sqlstore

import (
	"context"
	"errors"
	"math"
	"time"

	"github.com/watermill-outbox/outbox"
)

// purgeChunk is how many rows are deleted in one transaction by the clean-ups.
const purgeChunk = 1000

// DeleteProcessedBefore implements outbox.Store. It deletes in chunks, each in a transaction of its own.
func (e *Engine) DeleteProcessedBefore(ctx context.Context, t time.Time) (int64, error) {
	return e.purge(ctx, e.db, "archive_purge", t)
}

func (e *Engine) purge(ctx context.Context, conn Conn, query string, t time.Time) (int64, error) {
	total, last := int64(0), time.Unix(0, 0)
	for {
		n, toColumn := int64(0), e.dialect.Time.ToColumn
		err := conn.Query(ctx, e.sql[query], []any{toColumn(t), purgeChunk, toColumn(last)}, func(s Scanner) (bool, error) {
			var processed any
			if err := s.Scan(&processed); err != nil {
				return false, err
			}
			if at, err := e.timeFrom(processed); err == nil && at.After(last) {
				last = at
			}
			n++
			return true, nil
		})
		total += n
		if err != nil || n < purgeChunk {
			return total, e.fail("purge", err)
		}
	}
}

// ListFailed implements outbox.Inspector.
func (e *Engine) ListFailed(ctx context.Context, afterID string, limit int) ([]outbox.Message, error) {
	if limit <= 0 { // to SQLite it would mean no limit
		return nil, nil
	}
	after := int64(0)
	if afterID != "" {
		ids, err := parseIDs([]string{afterID})
		if err != nil {
			return nil, e.fail("list failed messages", err)
		}
		after = ids[0]
	}
	var page []outbox.Message
	err := e.db.Query(ctx, e.sql["failed_list"], []any{after, limit}, func(s Scanner) (bool, error) {
		r := &row{}
		var processed any
		err := s.Scan(&r.id, &r.msg.UUID, &r.msg.Topic, &r.msg.Key, &r.msg.Payload, &r.headers, &r.retries, &r.due,
			&r.msg.LastError, &r.created, &processed)
		if err != nil {
			return false, err
		}
		lastError := r.msg.LastError
		e.complete(r, outbox.StatusFailed)
		r.msg.LastError = lastError // what it was set aside for, even if the row is damaged
		r.msg.ProcessedAt, err = e.timeFrom(processed)
		page = append(page, r.msg)
		return true, err
	})
	return page, e.fail("list failed messages", err)
}

// CountFailed implements outbox.Inspector.
func (e *Engine) CountFailed(ctx context.Context) (int64, error) {
	var n int64
	err := e.db.Query(ctx, e.sql["failed_count"], nil, func(s Scanner) (bool, error) { return true, s.Scan(&n) })
	return n, e.fail("count failed messages", err)
}

// Requeue implements outbox.Inspector.
func (e *Engine) Requeue(ctx context.Context, ids ...string) (int64, error) {
	n, err := e.takeFailed(ctx, ids, "failed_requeue", "failed_delete")
	return n, e.fail("requeue", err)
}

// Discard implements outbox.Inspector.
func (e *Engine) Discard(ctx context.Context, ids ...string) (int64, error) {
	n, err := e.takeFailed(ctx, ids, "failed_delete")
	return n, e.fail("discard", err)
}

func (e *Engine) takeFailed(ctx context.Context, ids []string, queries ...string) (n int64, err error) {
	numbers, err := parseIDs(ids)
	if err != nil || len(ids) == 0 {
		return 0, err
	}
	err = e.inTx(ctx, func(tx Conn) error {
		for _, query := range queries {
			if n, err = tx.Exec(ctx, e.sql[query], e.dialect.Batch(numbers)...); err != nil {
				return err
			}
		}
		return nil
	})
	return n, err
}

// Stats implements outbox.StatsReporter.
func (e *Engine) Stats(ctx context.Context) (outbox.Stats, error) {
	stats := outbox.Stats{PendingByTopic: map[string]int64{}}
	err := e.db.Query(ctx, e.sql["stats"], nil, func(s Scanner) (bool, error) {
		var saved, due, now any
		if err := s.Scan(&stats.Pending, &saved, &due, &stats.Failed, &now); err != nil {
			return false, err
		}
		current, err := e.timeFrom(now)
		for _, column := range []any{saved, due} {
			since, timeErr := e.timeFrom(column)
			if !since.IsZero() {
				stats.OldestAge = max(stats.OldestAge, current.Sub(since))
			}
			err = errors.Join(err, timeErr)
		}
		return true, err
	})
	if err != nil {
		return stats, e.fail("count messages", err)
	}
	err = e.db.Query(ctx, e.sql["stats_topics"], nil, func(s Scanner) (bool, error) {
		var topic string
		var n int64
		err := s.Scan(&topic, &n)
		stats.PendingByTopic[topic] = n
		return true, err
	})
	return stats, e.fail("count messages by topic", err)
}

// Pending returns up to limit messages that wait to be published, by id, without claiming them: for tests.
func (e *Engine) Pending(ctx context.Context, tx any, limit int) ([]outbox.Message, error) {
	conn, err := e.connOf(tx)
	if err != nil {
		return nil, err
	}
	args := []any{0, int64(math.MaxInt64), limit}
	if e.dialect.Slots > 1 {
		args = append(args, int64(-1)) // of all
	}
	var msgs []outbox.Message
	err = conn.Query(ctx, e.sql["read"], args, func(s Scanner) (bool, error) {
		r := &row{}
		if err := r.scan(s); err != nil {
			return false, err
		}
		e.complete(r, outbox.StatusPending)
		msgs = append(msgs, r.msg)
		return true, nil
	})
	return msgs, e.fail("read messages", err)
}
