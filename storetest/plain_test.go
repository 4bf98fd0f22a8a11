package storetest_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/storetest"
)

func TestRun_OnAStoreWithoutLeases(t *testing.T) {
	storetest.Run(t, plainHarness(""), plainFeatures())
}

func plainFeatures() storetest.Features {
	return storetest.Features{Inspector: true, VirtualTime: true}
}

func plainHarness(f flaw) func(t *testing.T) storetest.Harness {
	return func(*testing.T) storetest.Harness {
		db := &plainDB{flaw: f}
		business := &businessTable{}
		return storetest.Harness{
			Open:    func(*testing.T) outbox.Store { return &plainStore{db} },
			Begin:   func(*testing.T, outbox.Store) storetest.Tx { return &plainTx{db: db} },
			Write:   business.write,
			Written: business.written,
			Expire: func(_ *testing.T, s outbox.Store) {
				if !f.is("strands claims") {
					db.expire(s)
				}
			},
		}
	}
}

// flaw is what is wrong about a store; the empty one is nothing.
type flaw string

func (f flaw) is(name flaw) bool { return f == name }

// plainDB is the database of a store that claims by writing into rows, as many an outbox does.
type plainDB struct {
	flaw flaw

	mu     sync.Mutex
	lastID int64
	seen   int64 // the highest id that was claimed
	rows   []*plainRow
}

type plainRow struct {
	outbox.Message
	id    int64
	owner outbox.Store // of the claim
}

func (db *plainDB) expire(s outbox.Store) {
	db.mu.Lock()
	defer db.mu.Unlock()
	for _, row := range db.rows {
		if row.owner == s && row.Status == outbox.StatusPending {
			row.owner = nil
		}
	}
}

type plainTx struct {
	db       *plainDB
	saved    []*plainRow
	onCommit []func()
	ended    bool
}

func (t *plainTx) Handle() any       { return t }
func (t *plainTx) OnCommit(f func()) { t.onCommit = append(t.onCommit, f) }
func (t *plainTx) Commit() error     { return t.end(true) }
func (t *plainTx) Rollback() error   { return t.end(t.db.flaw.is("commits rollbacks")) }

func (t *plainTx) end(commit bool) error {
	t.db.mu.Lock()
	defer t.db.mu.Unlock()
	if t.ended {
		return fmt.Errorf("the transaction has ended")
	}
	t.ended = true
	if commit {
		for _, f := range t.onCommit {
			f()
		}
		t.db.rows = append(t.db.rows, t.saved...)
	}
	return nil
}

type plainStore struct{ db *plainDB }

func (s *plainStore) Save(ctx context.Context, tx any, msgs ...outbox.Message) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	t, ok := tx.(*plainTx)
	switch {
	case tx == nil, ok && t == nil && s.db.flaw.is("commits in a typed nil"):
		t = &plainTx{db: s.db}
		defer t.Commit() //nolint:errcheck // it cannot fail
	case !ok && s.db.flaw.is("commits in anything"):
		t = &plainTx{db: s.db}
		defer t.Commit() //nolint:errcheck // it cannot fail
	case !ok || t == nil:
		return fmt.Errorf("a %T: %w", tx, outbox.ErrInvalidTx)
	}
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	if t.ended {
		return fmt.Errorf("the transaction has ended")
	}
	for _, m := range msgs {
		row, err := s.db.row(m)
		if err != nil {
			if !s.db.flaw.is("keeps half of a call") {
				t.saved = slices.DeleteFunc(t.saved, func(r *plainRow) bool { return r.id > s.db.lastID-int64(len(msgs)) })
			}
			return err
		}
		if s.db.flaw.is("writes outside of the transaction") {
			s.db.rows = append(s.db.rows, row)
			continue
		}
		t.saved = append(t.saved, row)
	}
	return nil
}

func (db *plainDB) row(m outbox.Message) (*plainRow, error) {
	db.lastID++
	if m.Topic == "" {
		db.lastID--
		return nil, outbox.ErrInvalidMessage
	}
	if db.flaw.is("gives ids again") && len(db.rows) == 0 {
		db.lastID = 1
	}
	if m.UUID == "" || db.flaw.is("replaces the UUID") {
		m.UUID = watermill.NewUUID()
	}
	if db.flaw.is("shortens payloads") && len(m.Payload) > 1<<16 {
		m.Payload = m.Payload[:1<<16]
	}
	if !db.flaw.is("keeps the caller's map") {
		m.Headers = maps.Clone(m.Headers)
	}
	if db.flaw.is("folds keys") {
		m.Key = strings.ToLower(m.Key)
	}
	m.Payload = slices.Clone(m.Payload)
	m.Status, m.Retries, m.LastError = outbox.StatusPending, 0, ""
	m.CreatedAt, m.ProcessedAt = time.Now(), time.Time{}
	m.ID = strconv.FormatInt(db.lastID, 10)
	return &plainRow{Message: m, id: db.lastID}, nil
}

func (s *plainStore) FetchPending(_ context.Context, limit int) ([]outbox.Message, error) {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	f := s.db.flaw
	slices.SortFunc(s.db.rows, func(a, b *plainRow) int {
		if f.is("returns the newest first") {
			return cmp.Compare(b.id, a.id)
		}
		return cmp.Compare(a.id, b.id)
	})
	blocked := map[string]bool{}
	var claimed []outbox.Message
	for _, row := range s.db.rows {
		if row.Status != outbox.StatusPending || len(claimed) >= limit && !f.is("ignores the limit") {
			continue
		}
		if f.is("misses late commits") && row.id < s.db.seen && row.Retries == 0 && row.owner == nil {
			continue
		}
		waits := row.AvailableAt.After(time.Now()) && !f.is("ignores delays")
		switch {
		case row.owner != nil && !f.is("ignores claims") && (row.owner == s || !f.is("ignores claims of others")):
			blocked[row.Key] = !f.is("lets a key overtake a claim")
		case waits && (row.Retries > 0 || f.is("lets a delay block its key")):
			blocked[row.Key] = !f.is("lets a key overtake a wait")
		case waits || row.Key != "" && blocked[row.Key] || f.is("lets unkeyed messages wait") && blocked[row.Key]:
		default:
			row.owner = s
			s.db.seen = max(s.db.seen, row.id)
			m := row.Message
			m.Status, m.Payload, m.Headers = outbox.StatusProcessing, slices.Clone(m.Payload), maps.Clone(m.Headers)
			claimed = append(claimed, m)
		}
	}
	return claimed, nil
}

// claimed calls f for the rows with these ids that are claimed.
func (s *plainStore) claimed(ids []string, f func(*plainRow)) {
	wanted := map[string]bool{}
	for _, id := range ids {
		wanted[id] = true
	}
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	for _, row := range s.db.rows {
		if row.owner != nil && row.Status == outbox.StatusPending && wanted[row.ID] {
			f(row)
		}
	}
}

func (s *plainStore) MarkProcessed(_ context.Context, ids ...string) error {
	if s.db.flaw.is("wants each id once") && len(slices.Compact(slices.Sorted(slices.Values(ids)))) < len(ids) {
		return errors.New("an id comes twice")
	}
	if s.db.flaw.is("stops at an unknown id") && slices.ContainsFunc(ids, func(id string) bool { return len(id) > 6 }) {
		return nil
	}
	s.claimed(ids, func(row *plainRow) {
		row.Status, row.ProcessedAt = outbox.StatusProcessed, time.Now()
		if s.db.flaw.is("settles by UUID") {
			for _, other := range s.db.rows {
				if other.UUID == row.UUID {
					other.Status = outbox.StatusProcessed
				}
			}
		}
	})
	return nil
}

func (s *plainStore) MarkFailed(_ context.Context, id string, err error) error {
	policy := outbox.DefaultConfig()
	if s.db.flaw.is("gives up early") {
		policy.MaxRetries--
	}
	s.claimed([]string{id}, func(row *plainRow) {
		if !s.db.flaw.is("counts no retries") {
			row.Retries++
		}
		row.LastError, row.owner = err.Error(), nil
		if !s.db.flaw.is("retries at once") {
			row.AvailableAt = time.Now().Add(policy.RetryDelay(row.Retries))
		}
		switch {
		case row.Retries < policy.MaxRetries:
		case s.db.flaw.is("deletes at the maximum"):
			row.Status = "deleted"
		default:
			row.Status, row.ProcessedAt = outbox.StatusFailed, time.Now()
		}
	})
	return nil
}

// remove deletes rows and returns how many.
func (db *plainDB) remove(which func(*plainRow) bool) int64 {
	db.mu.Lock()
	defer db.mu.Unlock()
	before := len(db.rows)
	db.rows = slices.DeleteFunc(db.rows, which)
	return int64(before - len(db.rows))
}

func (s *plainStore) DeleteProcessedBefore(_ context.Context, t time.Time) (int64, error) {
	if s.db.flaw.is("deletes what was processed at t") {
		t = t.Add(1)
	}
	return s.db.remove(func(row *plainRow) bool {
		old := !row.ProcessedAt.IsZero() && row.ProcessedAt.Before(t)
		return old && (row.Status == outbox.StatusProcessed || s.db.flaw.is("deletes failed messages"))
	}), nil
}

func (s *plainStore) ListFailed(_ context.Context, afterID string, limit int) ([]outbox.Message, error) {
	after, _ := strconv.ParseInt(afterID, 10, 64) // 0 for the first page
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	var page []outbox.Message
	for _, row := range s.db.rows {
		if row.Status == outbox.StatusFailed && row.id > after && len(page) < limit {
			page = append(page, row.Message)
		}
	}
	slices.SortFunc(page, func(a, b outbox.Message) int { return cmp.Compare(len(a.ID), len(b.ID)) })
	return page, nil
}

func (s *plainStore) CountFailed(ctx context.Context) (int64, error) {
	failed, err := s.ListFailed(ctx, "", 1<<30)
	return int64(len(failed)), err
}

func (s *plainStore) Requeue(_ context.Context, ids ...string) (int64, error) {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	found := int64(0)
	for _, row := range s.db.rows {
		if row.Status != outbox.StatusFailed || !slices.Contains(ids, row.ID) {
			continue
		}
		found++
		row.Status, row.owner, row.AvailableAt, row.ProcessedAt = outbox.StatusPending, nil, time.Time{}, time.Time{}
		if !s.db.flaw.is("requeues without attempts") {
			row.Retries, row.LastError = 0, ""
		}
		if !s.db.flaw.is("requeues in place") {
			s.db.lastID++
			row.id, row.ID = s.db.lastID, strconv.FormatInt(s.db.lastID, 10)
		}
	}
	return found, nil
}

func (s *plainStore) Discard(_ context.Context, ids ...string) (int64, error) {
	return s.db.remove(func(row *plainRow) bool {
		return row.Status == outbox.StatusFailed && slices.Contains(ids, row.ID)
	}), nil
}
