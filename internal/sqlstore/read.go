package sqlstore

import (
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

// readOn reads the rows behind the cursor, unless hot is false, and those that have come late before it.
func (e *Engine) readOn(ctx context.Context, n, maxBytes int, hot bool) (more bool, err error) {
	more, err = e.fetch(ctx, n, maxBytes, hot)
	if errors.Is(err, errUnknown) {
		e.looked = time.Time{}
		more, err = e.fetch(ctx, n, maxBytes, hot)
	}
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
	quiet := fetch.Quiet() && !e.mustLook()
	if quiet && !hot {
		return false, nil
	}
	alone := quiet && fetch.CatchUp.From > fetch.CatchUp.To // there are only new rows to read
	if alone {
		if nothing, err := e.nothingNew(ctx, fetch); nothing || err != nil {
			return false, err
		}
	}
	var shown, catchUp page
	now := e.passedNow()
	err = e.reading(func() (err error) {
		if alone {
			shown, err = e.readAlone(ctx, fetch, n, maxBytes)
		} else {
			shown, catchUp, err = e.readSnapshot(ctx, fetch, n, maxBytes, hot)
		}
		e.learn(&shown)
		return err
	}, func() {
		caughtUp := fetch.CatchUp.To
		if catchUp.cut {
			caughtUp = catchUp.last()
		}
		caughtUp = fetch.Through(caughtUp, shown.ids, shown.cut)
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
		fetch.End(shown.ids, shown.cut, caughtUp)
		e.idle = len(shown.ids)+len(catchUp.ids) == 0
	})
	return shown.cut || catchUp.cut, err
}

// nothingNew tells that a fetch would show nothing, for less than the fetch costs. Where the last one has shown something, it
// does not ask. The fetch is quiet, and has only new rows to read.
func (e *Engine) nothingNew(ctx context.Context, fetch *scan.Fetch) (bool, error) {
	if !e.dialect.Late || !e.idle {
		return false, nil
	}
	var last int64
	err := e.db.Query(ctx, e.sql["last_value"], nil, func(row Scanner) (bool, error) { return true, row.Scan(&last) })
	return err == nil && last <= fetch.After, err
}

// enter adds a row to the queue, if its slot is held. The caller holds mu.
func (e *Engine) enter(r *row, now time.Time) {
	if _, held := e.leases[r.slot]; !held {
		return
	}
	if known, ok := e.rowFor(r, now); ok {
		known.Message.ID = claim.WithGeneration(known.Message.ID, e.generation)
		e.queue.Add(known)
	}
}

// settings returns the query that comes before the reads of a snapshot, if there is any.
func (e *Engine) settings() []Query {
	if !e.dialect.Late {
		return nil
	}
	return []Query{{SQL: e.sql["read_settings"], Each: func(Scanner) (bool, error) { return true, nil }}}
}

// readAlone makes the read of a quiet fetch that has only new rows to read: in one round trip, unless ids are missing among
// them, which may come late.
func (e *Engine) readAlone(ctx context.Context, fetch *scan.Fetch, n, maxBytes int) (shown page, err error) {
	queries := append(e.settings(), e.pageQuery(&shown, "read", n, maxBytes, fetch.After, int64(math.MaxInt64)))
	if !e.dialect.Late {
		return shown, e.db.Snapshot(ctx, queries, nil)
	}
	var now server
	if err := e.db.Snapshot(ctx, append(queries, e.glance(&now)), nil); err != nil {
		return shown, err
	}
	if !e.isKnown(now) {
		return shown, errUnknown
	}
	e.server.lastValue = now.lastValue
	if len(shown.ids) == 0 {
		return shown, nil
	}
	if fetch.Gapless(shown.ids) {
		e.unlisted = true
		return shown, nil
	}
	var seen sight
	q := e.look(&seen)
	if err := e.db.Query(ctx, q.SQL, q.Args, q.Each); err != nil {
		return shown, err
	}
	_, err = e.listed(fetch, seen) // a quiet fetch has nothing else to read
	return shown, err
}

// readSnapshot makes the reads of one fetch, all in one snapshot. shown is one prefix of what they show, by id.
func (e *Engine) readSnapshot(
	ctx context.Context, fetch *scan.Fetch, n, maxBytes int, hot bool,
) (shown, catchUp page, err error) {
	var again, next, missed page
	var seen sight
	first := e.settings()
	first = append(first, e.readRuns(&again, fetch.Again, n, maxBytes)...)
	if fetch.CatchUp.From <= fetch.CatchUp.To {
		first = append(first, e.pageQuery(&catchUp, "read", n, maxBytes, fetch.CatchUp.From-1, fetch.CatchUp.To))
	}
	if hot {
		first = append(first, e.pageQuery(&next, "read", n, maxBytes, fetch.After, int64(math.MaxInt64)))
	}
	waits := e.dialect.Late && !fetch.Quiet()
	if waits { // for what the reads do not show, and who has ended tells whether to read more
		first = append(first, e.look(&seen))
	}
	err = e.db.Snapshot(ctx, first, func() ([]Query, error) {
		shown = merge(again, next, maxBytes)
		if waits {
			runs, err := e.listed(fetch, seen)
			return e.readRuns(&missed, runs, n, maxBytes), err
		}
		if e.dialect.Late && (len(shown.ids)+len(catchUp.ids) > 0 || e.mustLook()) {
			return []Query{e.look(&seen)}, nil
		}
		return nil, nil
	})
	if err == nil && !waits && seen.server != (server{}) {
		_, err = e.listed(fetch, seen)
	}
	return merge(missed, shown, maxBytes), catchUp, err
}

// readRuns returns the query for runs, or none if there are none.
func (e *Engine) readRuns(p *page, runs []scan.Run, n, maxBytes int) []Query {
	if len(runs) == 0 {
		return nil
	}
	from, to := make([]int64, len(runs)), make([]int64, len(runs))
	for i, run := range runs {
		from[i], to[i] = run.From, run.To
	}
	return []Query{e.pageQuery(p, "read_runs", n, maxBytes, e.dialect.Batch(from, to)...)}
}

// databaseNow is the database's time, going by what it was when slots were last taken or renewed. What has passed since goes by
// the monotonic clock, which nobody sets.
func (e *Engine) databaseNow() time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.toldAt.IsZero() {
		return time.Now()
	}
	return e.databaseTime.Add(time.Since(e.toldAt))
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
	last, toColumn, cursor := e.due, e.dialect.Time.ToColumn, e.reader.Cursor()
	err = e.reading(func() (err error) {
		shown, err = e.read(ctx, "read_due", n, maxBytes, toColumn(e.due.at), e.due.id, toColumn(now), cursor)
		return err
	}, func() {
		if shown.cut {
			at, err := e.timeFrom(shown.due)
			if err != nil {
				at = last.at // a damaged time, which sorts as it does; the message will tell
			}
			last = dueCursor{at: at, id: shown.last()}
		}
		for _, r := range shown.rows {
			// Others are read by id, when they are not yet known: with those of their key that come before them.
			if r.id <= cursor && r.msg.Retries == 0 && !e.reader.Expects(r.slot, r.id) {
				e.enter(r, time.Time{})
			}
		}
	})
	if err != nil {
		return false, err
	}
	if len(shown.ids) > 0 {
		e.looked = time.Time{} // as after any read that does not tell of the server
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
	shown, err := e.read(ctx, "read_ids", len(ids), maxBytes, e.dialect.Batch(ids)...)
	if err != nil {
		return err
	}
	found := make(map[int64]*outbox.Message, len(shown.rows))
	for _, r := range shown.rows {
		found[r.id] = &r.msg
	}
	whole := !shown.cut || len(shown.ids) == len(ids)
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, id := range ids {
		if m := found[id]; m != nil {
			m.ID = claim.WithGeneration(m.ID, e.generation)
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
