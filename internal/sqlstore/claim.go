package sqlstore

import (
	"context"
	"errors"
	"math"
	"strconv"
	"time"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/internal/claim"
)

const (
	// minRead is the fewest rows a read asks for: the statement costs more than they.
	minRead = 64
	// maxReads bounds the reads of one Claim that has found something to claim.
	maxReads = 4
	// refillRows is how many rows are read at once for lists that lost their tails.
	refillRows = 5000
)

// Claim implements outbox.LeasedStore.
func (e *Engine) Claim(ctx context.Context, limit, maxBytes int) ([]outbox.Message, error) {
	defer e.tellAll()
	e.claimMu.Lock()
	defer e.claimMu.Unlock()
	observer, eventCtx := outbox.ObserverFromContext(ctx), context.WithoutCancel(ctx)
	e.mu.Lock()
	e.tell = func(event outbox.Event) { observer.Observe(eventCtx, event) }
	e.mu.Unlock()
	if !e.checked {
		if err := e.CheckSchema(ctx); err != nil {
			return nil, err
		}
		e.checked = true
	}
	if err := e.lead(ctx); err != nil {
		return nil, err
	}
	if limit <= 0 {
		return nil, nil
	}
	if err := e.sweep(ctx); err != nil {
		return nil, e.fail("look for messages that were missed", err)
	}
	for reads := 0; ctx.Err() == nil; reads++ { // until there is something, or nothing left to read
		e.mu.Lock()
		ready, sated := e.queue.Ready(e.tick()), e.queue.Sated()
		e.mu.Unlock()
		if ready >= limit || (ready > 0 && (sated || reads >= maxReads)) {
			break
		}
		more, err := e.fill(ctx, limit-ready, maxBytes)
		if err != nil {
			return nil, err
		}
		if !more {
			break
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	claimed := e.queue.Claim(e.tick(), limit, maxBytes)
	msgs := make([]outbox.Message, len(claimed))
	for i, m := range claimed {
		msgs[i] = *m
	}
	return msgs, nil
}

// CheckSchema implements outbox.SchemaChecker.
func (e *Engine) CheckSchema(ctx context.Context) error {
	return e.fail("check the schema",
		e.db.Query(ctx, e.sql["check"], nil, func(Scanner) (bool, error) { return true, nil }))
}

// fill reads what may be claimed next, about n messages of it. more is false when there is nothing left to read. The
// caller holds claimMu.
func (e *Engine) fill(ctx context.Context, n, maxBytes int) (more bool, err error) {
	e.mu.Lock()
	now := e.tick()
	wanted := e.queue.Wanted(now, n)
	if from, wanted := e.queue.Reread(); wanted {
		e.cursor = min(e.cursor, from-1)
	}
	refillFrom, refill := e.queue.Refill()
	full := (len(wanted) > 0 && e.queue.Sated()) || e.queue.Full()
	e.mu.Unlock()

	n = max(n, minRead)
	if len(wanted) > 0 {
		if err := e.load(ctx, wanted, maxBytes); err != nil {
			return false, e.fail("read messages by id", err)
		}
		more = true
	}
	if refill {
		if err := e.refill(ctx, refillFrom); err != nil {
			return false, e.fail("read on behind a long key", err)
		}
		more = true
	}
	if full {
		return more, nil
	}
	moreDue, err := e.readDue(ctx, n, maxBytes)
	if err != nil {
		return false, e.fail("read delayed messages", err)
	}
	read, err := e.readOn(ctx, n, maxBytes)
	if err != nil {
		return false, e.fail("read messages", err)
	}
	return more || moreDue || read, nil
}

// readOn reads the rows behind the cursor.
func (e *Engine) readOn(ctx context.Context, n, maxBytes int) (more bool, err error) {
	count, last, cut := 0, e.cursor, false
	now := e.passedNow()
	err = e.read(ctx, "read", []any{e.cursor, int64(math.MaxInt64), n}, maxBytes, &cut, func(r *row) *claim.Row {
		count, last = count+1, r.id
		return e.rowFor(r, now)
	})
	if err != nil {
		return false, err
	}
	e.cursor = last
	return cut || count == n, nil
}

// passedNow is by what a read by id tells whether a row is delayed or due: a time that readDue has not passed, or nobody
// would read the row again.
func (e *Engine) passedNow() time.Time {
	if now := e.databaseNow(); now.After(e.due.at) {
		return now
	}
	return e.due.at
}

// readDue reads delayed messages, among those that the cursor has passed, whose time has come.
func (e *Engine) readDue(ctx context.Context, n, maxBytes int) (more bool, err error) {
	now := e.databaseNow()
	if now.Before(e.due.at) { // the clock was set back: what has been read since is known or done
		e.due = dueCursor{at: now}
	}
	count, last, cut := 0, e.due, false
	toColumn := e.dialect.Time.ToColumn
	args := []any{toColumn(e.due.at), e.due.id, toColumn(now), e.cursor, n}
	err = e.read(ctx, "read_due", args, maxBytes, &cut, func(r *row) *claim.Row {
		at, err := e.timeFrom(r.due)
		if err != nil {
			at = last.at // a damaged time, which sorts as it does; the message will tell
		}
		count, last = count+1, dueCursor{at: at, id: r.id}
		return e.rowFor(r, time.Time{})
	})
	if err != nil {
		return false, err
	}
	more = count == n || cut
	if !more {
		last = dueCursor{at: now.Truncate(time.Millisecond), id: math.MaxInt64}
	}
	e.due = last
	return more, nil
}

// read runs a read statement and adds its rows to the queue, all of them under one BeginRead. It stops, with *cut true,
// behind the row that exceeds maxBytes. take returns nil for a row that is not to enter.
func (e *Engine) read(
	ctx context.Context, query string, args []any, maxBytes int, cut *bool, take func(*row) *claim.Row,
) error {
	e.mu.Lock()
	e.queue.BeginRead()
	e.mu.Unlock()
	rows, bytes := e.rows[:0], 0
	err := e.db.Query(ctx, e.sql[query], args, func(s Scanner) (bool, error) {
		r := &row{}
		if err := r.scan(s); err != nil {
			return false, err
		}
		bytes += r.size()
		if taken := take(r); taken != nil {
			rows = append(rows, *taken)
		}
		*cut = bytes > maxBytes
		return !*cut, nil
	})
	e.mu.Lock()
	defer e.mu.Unlock()
	defer e.queue.EndRead()
	if err != nil {
		return err
	}
	for _, r := range rows {
		if _, held := e.leases[r.Slot]; held {
			e.queue.Add(r)
		}
	}
	clear(rows)
	e.rows = rows
	return nil
}

// rowFor returns what the queue needs of a row, or nil for one that is delayed beyond now and was not tried yet: it
// enters when it is due. One that was tried enters as it is, and waits at the front of its key.
func (e *Engine) rowFor(r *row, now time.Time) *claim.Row {
	m := e.message(r, outbox.StatusProcessing)
	due := int64(0)
	if !m.AvailableAt.IsZero() && !now.IsZero() {
		if m.Retries == 0 && m.AvailableAt.After(now) {
			return nil
		}
		due = e.tick() + min(int64(m.AvailableAt.Sub(now)), math.MaxInt64/2) // Sub may be as large as an int64 can be
	}
	return &claim.Row{ID: r.id, Slot: r.slot, Key: m.Key, Topic: m.Topic, Due: due, Message: m}
}

// load reads messages by id whose payload is not in memory, as far as maxBytes goes.
func (e *Engine) load(ctx context.Context, ids []int64, maxBytes int) error {
	found := make(map[int64]*outbox.Message, len(ids))
	bytes := 0
	err := e.db.Query(ctx, e.sql["read_ids"], []any{jsonIDs(ids)}, func(s Scanner) (bool, error) {
		r := &row{}
		if err := r.scan(s); err != nil {
			return false, err
		}
		bytes += r.size()
		found[r.id] = e.message(r, outbox.StatusProcessing)
		return bytes <= maxBytes, nil
	})
	if err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, id := range ids {
		if m := found[id]; m != nil {
			e.queue.Load(id, m)
		} else if bytes <= maxBytes { // otherwise it was not looked for
			e.queue.Gone(id)
		}
	}
	return nil
}

// refill reads on behind keys that were too long to be kept in memory whole.
func (e *Engine) refill(ctx context.Context, from int64) error {
	e.mu.Lock()
	e.queue.BeginRead()
	e.mu.Unlock()
	var rows []claim.Row
	count, now, through := 0, e.passedNow(), e.cursor
	args := []any{from - 1, e.cursor, refillRows}
	err := e.db.Query(ctx, e.sql["read"], args, func(s Scanner) (bool, error) {
		r := &row{}
		if err := r.scan(s); err != nil {
			return false, err
		}
		if taken := e.rowFor(r, now); taken != nil {
			taken.Message = nil // the queue asks for those it needs
			rows = append(rows, *taken)
		}
		if count++; count == refillRows {
			through = r.id
		}
		return true, nil
	})
	e.mu.Lock()
	defer e.mu.Unlock()
	defer e.queue.EndRead()
	if err != nil {
		return err
	}
	e.queue.AddRefill(rows, from, through, through == e.cursor)
	return nil
}

// databaseNow is the database's time, going by what it was when slots were last taken or renewed.
func (e *Engine) databaseNow() time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	return time.Now().Add(e.clockDiff)
}

func messageID(m *outbox.Message) int64 {
	id, err := strconv.ParseInt(m.ID, 10, 64)
	if err != nil {
		panic(err) // the engine made the id
	}
	return id
}

// FetchPending implements outbox.Store.
func (e *Engine) FetchPending(ctx context.Context, limit int) ([]outbox.Message, error) {
	msgs, err := e.Claim(ctx, limit, claim.ByHandBytes)
	if errors.Is(err, outbox.ErrNoLease) {
		return nil, nil
	}
	return msgs, err
}

// PauseTopics implements outbox.TopicPauser.
func (e *Engine) PauseTopics(topics ...string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.queue.Pause(topics)
}
