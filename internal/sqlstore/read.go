package sqlstore

import (
	"cmp"
	"context"
	"errors"
	"math"
	"slices"
	"time"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/internal/claim"
	"github.com/watermill-outbox/outbox/internal/scan"
)

// refillRows is how many rows are read at once for lists that lost their tails.
const refillRows = 5000

// reading runs read, and then add under the lock. The queue is told before the snapshot is taken, so that what is settled
// meanwhile does not come back.
func (e *Engine) reading(read func() error, add func()) error {
	e.mu.Lock()
	e.queue.BeginRead()
	e.mu.Unlock()
	err := read()
	e.mu.Lock()
	defer e.mu.Unlock()
	defer e.queue.EndRead()
	if err != nil {
		return err
	}
	add()
	return nil
}

// page is what a read has shown, ascending.
type page struct {
	rows []*row
	cut  bool // there may be more
}

// read runs a read statement for up to limit rows of up to maxBytes, or one that is larger.
func (e *Engine) read(ctx context.Context, conn Conn, query string, limit, maxBytes int, args ...any) (page, error) {
	var p page
	bytes := 0
	err := conn.Query(ctx, e.sql[query], e.readArgs(append(args, limit)), func(s Scanner) (bool, error) {
		r := &row{}
		if err := r.scan(s); err != nil {
			return false, err
		}
		r.size = r.msg.Size() + len(r.headers)
		e.complete(r, outbox.StatusProcessing)
		r.msg.ID = withHistory(r.msg.ID, e.history)
		p.rows = append(p.rows, r)
		bytes += r.size
		p.cut = bytes > maxBytes
		return !p.cut, nil
	})
	p.cut = p.cut || len(p.rows) == limit
	return p, err
}

// readArgs appends the slots whose payloads are wanted, where there are several.
func (e *Engine) readArgs(args []any) []any {
	if e.dialect.Slots <= 1 {
		return args
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	slots := make([]int64, 0, len(e.leases))
	for slot := range e.leases {
		slots = append(slots, int64(slot))
	}
	return append(args, e.dialect.Batch(slots)...)
}

// readOn reads the rows behind the cursor, unless hot is false, and those that have come late before it.
func (e *Engine) readOn(ctx context.Context, n, maxBytes int, hot bool) (more bool, err error) {
	more, err = e.fetch(ctx, n, maxBytes, hot)
	if errors.Is(err, errRestarted) {
		e.reader.Restarted()
		more, err = e.fetch(ctx, n, maxBytes, hot)
	}
	switch {
	case errors.Is(err, errOtherHistory):
		e.startOver(err)
		return false, outbox.ErrNoLease
	case err != nil:
		e.looked = time.Time{} // the next read looks whether the server is another
	}
	return more, err
}

func (e *Engine) fetch(ctx context.Context, n, maxBytes int, hot bool) (more bool, err error) {
	fetch := e.reader.Begin()
	if !hot && fetch.Quiet() && !e.mustLook() {
		return false, nil
	}
	var shown, catchUp page
	now := e.passedNow()
	err = e.reading(func() error {
		return e.db.Snapshot(ctx, func(conn Conn) (err error) {
			shown, catchUp, err = e.readSnapshot(ctx, conn, fetch, n, maxBytes, hot)
			return err
		})
	}, func() {
		caughtUp := fetch.CatchUp.To
		if catchUp.cut {
			caughtUp = catchUp.rows[len(catchUp.rows)-1].id
		}
		seen := make([]int64, len(shown.rows))
		for i, r := range shown.rows {
			seen[i] = r.id
		}
		caughtUp = fetch.Through(caughtUp, seen, shown.cut)
		for _, r := range catchUp.rows {
			if fetch.CatchesUp(r.slot) && r.id <= caughtUp {
				e.enter(r, now)
			}
		}
		for _, r := range shown.rows {
			if fetch.Admits(r.slot, r.id, caughtUp) {
				e.enter(r, now)
			}
		}
		fetch.End(seen, shown.cut, caughtUp)
	})
	return shown.cut || catchUp.cut, err
}

// enter adds a row to the queue, if its slot is held. The caller holds mu.
func (e *Engine) enter(r *row, now time.Time) {
	if _, held := e.leases[r.slot]; !held {
		return
	}
	if known, ok := e.rowFor(r, now); ok {
		e.queue.Add(known)
	}
}

// readSnapshot makes the reads of one fetch, all in one snapshot. shown is one prefix of what they show, by id.
func (e *Engine) readSnapshot(
	ctx context.Context, conn Conn, fetch *scan.Fetch, n, maxBytes int, hot bool,
) (shown, catchUp page, err error) {
	if shown, err = e.readRuns(ctx, conn, fetch.Again, n, maxBytes); err != nil {
		return shown, catchUp, err
	}
	if fetch.CatchUp.From <= fetch.CatchUp.To {
		catchUp, err = e.read(ctx, conn, "read", n, maxBytes, fetch.CatchUp.From-1, fetch.CatchUp.To)
		if err != nil {
			return shown, catchUp, err
		}
	}
	if hot {
		next, err := e.read(ctx, conn, "read", n, maxBytes, fetch.After, int64(math.MaxInt64))
		if err != nil {
			return shown, catchUp, err
		}
		shown = merge(shown, next, maxBytes)
	}
	if !e.dialect.Late || (fetch.Quiet() && len(shown.rows) == 0 && !e.mustLook()) {
		return shown, catchUp, nil
	}
	holders, lastValue, err := e.holders(ctx, conn)
	if err != nil {
		return shown, catchUp, err
	}
	missed, err := e.readRuns(ctx, conn, fetch.Listed(holders, lastValue), n, maxBytes)
	return merge(missed, shown, maxBytes), catchUp, err
}

func (e *Engine) readRuns(ctx context.Context, conn Conn, runs []scan.Run, n, maxBytes int) (page, error) {
	if len(runs) == 0 {
		return page{}, nil
	}
	from, to := make([]int64, len(runs)), make([]int64, len(runs))
	for i, run := range runs {
		from[i], to[i] = run.From, run.To
	}
	return e.read(ctx, conn, "read_runs", n, maxBytes, e.dialect.Batch(from, to)...)
}

// merge puts two pages together, by id, as far as both are whole and maxBytes goes. Where a is cut, b may be cut, too.
func merge(a, b page, maxBytes int) page {
	if len(a.rows) == 0 {
		return b
	}
	rows := slices.Concat(a.rows, b.rows)
	slices.SortFunc(rows, func(x, y *row) int { return cmp.Compare(x.id, y.id) })
	through, cut, bytes := int64(math.MaxInt64), a.cut || b.cut, 0
	for _, p := range []page{a, b} {
		if p.cut {
			through = min(through, p.rows[len(p.rows)-1].id)
		}
	}
	for i, r := range rows {
		if r.id > through || (bytes > maxBytes && i > 0) {
			return page{rows: rows[:i], cut: true}
		}
		bytes += r.size
	}
	return page{rows: rows, cut: cut}
}

// databaseNow is the database's time, going by what it was when slots were last taken or renewed.
func (e *Engine) databaseNow() time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	return time.Now().Add(e.clockDiff)
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
	var shown page
	last, toColumn := e.due, e.dialect.Time.ToColumn
	err = e.reading(func() (err error) {
		shown, err = e.read(ctx, e.db, "read_due", n, maxBytes, toColumn(e.due.at), e.due.id, toColumn(now), e.reader.Cursor())
		return err
	}, func() {
		for _, r := range shown.rows {
			at, err := e.timeFrom(r.due)
			if err != nil {
				at = last.at // a damaged time, which sorts as it does; the message will tell
			}
			last = dueCursor{at: at, id: r.id}
			e.enter(r, time.Time{})
		}
	})
	if err != nil {
		return false, err
	}
	if !shown.cut {
		last = dueCursor{at: now.Truncate(time.Millisecond), id: math.MaxInt64}
		e.nextDue = time.Now().Add(dueInterval)
	}
	e.due = last
	return shown.cut, nil
}

// rowFor returns what the queue needs of a row. One that is delayed beyond now and was not tried yet is not ok: it
// enters when it is due. One that was tried enters as it is, and waits at the front of its key.
func (e *Engine) rowFor(r *row, now time.Time) (known claim.Row, ok bool) {
	m, due := &r.msg, int64(0)
	if !m.AvailableAt.IsZero() && !now.IsZero() {
		if m.Retries == 0 && m.AvailableAt.After(now) {
			return claim.Row{}, false
		}
		due = e.tick() + min(int64(m.AvailableAt.Sub(now)), math.MaxInt64/2) // Sub may be as large as an int64 can be
	}
	return claim.Row{ID: r.id, Slot: r.slot, Key: m.Key, Topic: m.Topic, Due: due, Message: m}, true
}

// load reads messages by id whose payload is not in memory, as far as maxBytes goes.
func (e *Engine) load(ctx context.Context, ids []int64, maxBytes int) error {
	shown, err := e.read(ctx, e.db, "read_ids", len(ids), maxBytes, e.dialect.Batch(ids)...)
	if err != nil {
		return err
	}
	found := make(map[int64]*outbox.Message, len(shown.rows))
	for _, r := range shown.rows {
		found[r.id] = &r.msg
	}
	whole := !shown.cut || len(shown.rows) == len(ids)
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, id := range ids {
		if m := found[id]; m != nil {
			e.queue.Load(id, m)
		} else if whole { // otherwise it was not looked for
			e.queue.Gone(id)
		}
	}
	return nil
}

// refill reads on behind keys that were too long to be kept in memory whole.
func (e *Engine) refill(ctx context.Context, from int64) error {
	var known outline
	cursor := e.reader.Cursor()
	return e.reading(func() (err error) {
		known, err = e.outline(ctx, from-1, cursor, refillRows, e.passedNow())
		return err
	}, func() {
		through := cursor
		if known.cut {
			through = known.last
		}
		rows := slices.DeleteFunc(known.rows, func(r claim.Row) bool { // they come with what is late before them
			return e.reader.Expects(r.Slot, r.ID)
		})
		e.queue.AddRefill(rows, from, through, through == cursor)
	})
}
