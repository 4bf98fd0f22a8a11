package scan_test

import (
	"fmt"
	"slices"

	"github.com/watermill-outbox/outbox/internal/scan"
)

// database is a simulated PostgreSQL: transactions that take ids from a sequence, row locks on keys, and snapshots.
type database struct {
	next  int64 // of the sequence
	epoch int   // of the server; transactions' names start again in each
	rows  map[int64]row
	txs   []*transaction
	locks map[string]*transaction
}

type row struct {
	id   int64
	key  string
	slot int
}

type transaction struct {
	name     string
	holds    bool // it has taken an id
	prepared bool
	ended    bool
	wrote    []row
}

func newDatabase() *database {
	return &database{next: 1, rows: map[int64]row{}, locks: map[string]*transaction{}}
}

func (d *database) begin(name string) *transaction {
	t := &transaction{name: name}
	d.txs = append(d.txs, t)
	return t
}

// lock takes the row lock of a key, or tells that somebody else has it.
func (d *database) lock(t *transaction, key string) bool {
	if holder := d.locks[key]; holder != nil && holder != t {
		return false
	}
	d.locks[key] = t
	return true
}

// publish takes an id; the row is visible after the commit. kept is false for a savepoint that is rolled back.
func (d *database) publish(t *transaction, key string, slot int, kept bool) {
	t.holds = true
	if kept {
		t.wrote = append(t.wrote, row{d.next, key, slot})
	}
	d.next++
}

// end commits or rolls back.
func (d *database) end(t *transaction, commit bool) {
	t.ended = true
	for key, holder := range d.locks {
		if holder == t {
			delete(d.locks, key)
		}
	}
	if commit {
		for _, r := range t.wrote {
			d.rows[r.id] = r
		}
	}
}

// restart rolls back whoever has not prepared.
func (d *database) restart() {
	d.epoch++
	for _, t := range d.txs {
		if !t.ended && !t.prepared {
			d.end(t, false)
		}
	}
}

func (d *database) holders() []scan.Holder {
	var list []scan.Holder
	for _, t := range d.txs {
		switch {
		case t.ended || !t.holds:
		case t.prepared:
			list = append(list, scan.Holder{ID: "prepared " + t.name, Prepared: true})
		default:
			list = append(list, scan.Holder{ID: t.name})
		}
	}
	return list
}

// snapshot is what was committed at one moment, ascending.
func (d *database) snapshot() []row {
	var rows []row
	for _, r := range d.rows {
		rows = append(rows, r)
	}
	slices.SortFunc(rows, func(a, b row) int { return int(a.id - b.id) })
	return rows
}

// relay is an instance: a Reader, and what it has published.
type relay struct {
	db        *database
	reader    scan.Reader
	owns      func(slot int) bool
	limit     int
	budget    int // rows of a fetch
	published []row
	keep      bool // published rows are marked by mark, and not at once
	unmarked  []row
	known     map[int64]bool

	step  int // of the fetch under way
	fetch *scan.Fetch
	snap  []row
	hot   []row
	again []row
	catch []row
	done  map[int64]bool // settled while the fetch was under way

	missed error
}

func newRelay(db *database, limit, budget int) *relay {
	return &relay{
		db: db, limit: limit, budget: budget, owns: func(int) bool { return true },
		known: map[int64]bool{}, done: map[int64]bool{},
	}
}

// advance makes the next step of a fetch: snapshot and first read; list; second read and end.
func (r *relay) advance() {
	switch r.step {
	case 0:
		r.fetch = r.reader.Begin()
		r.snap = r.db.snapshot()
		clear(r.done)
		r.hot = r.between(r.fetch.After+1, 1<<62, r.limit)
		r.again = r.in(r.fetch.Again)
		r.catch = r.between(r.fetch.CatchUp.From, r.fetch.CatchUp.To, r.limit)
	case 1:
		r.again = append(r.again, r.in(r.fetch.Listed(r.db.holders(), r.db.next-1))...)
		slices.SortFunc(r.again, func(a, b row) int { return int(a.id - b.id) })
	case 2:
		r.finish()
	}
	r.step = (r.step + 1) % 3
}

func (r *relay) between(from, to int64, limit int) []row {
	var rows []row
	for _, row := range r.snap {
		if row.id >= from && row.id <= to && len(rows) < limit {
			rows = append(rows, row)
		}
	}
	return rows
}

func (r *relay) in(runs []scan.Run) []row {
	var rows []row
	for _, run := range runs {
		rows = append(rows, r.between(run.From, run.To, 1<<30)...)
	}
	return rows
}

func (r *relay) finish() {
	shown := append(slices.Clone(r.again), r.hot...)
	cut := len(shown) > r.budget
	if cut {
		shown = shown[:r.budget]
	}
	caughtUp := r.fetch.CatchUp.To
	if len(r.catch) == r.limit {
		caughtUp = r.catch[len(r.catch)-1].id
	}
	ids := make([]int64, len(shown))
	for i, row := range shown {
		ids[i] = row.id
	}
	caughtUp = r.fetch.Through(caughtUp, ids, cut)
	var entering []row
	for _, row := range shown {
		if r.fetch.Admits(row.slot, row.id, caughtUp) {
			entering = append(entering, row)
		}
	}
	for _, row := range r.catch {
		if r.fetch.CatchesUp(row.slot) && row.id <= caughtUp {
			entering = append(entering, row)
		}
	}
	r.fetch.End(ids, cut, caughtUp)
	slices.SortStableFunc(entering, func(a, b row) int { return int(a.id - b.id) })
	for _, row := range entering {
		if r.owns(row.slot) && !r.known[row.id] && !r.done[row.id] {
			r.known[row.id] = true
			r.published = append(r.published, row)
			r.unmarked = append(r.unmarked, row)
		}
	}
	for _, row := range r.snap { // what a sweep would find
		if r.owns(row.slot) && row.id <= r.reader.Cursor() && !r.known[row.id] && !r.done[row.id] &&
			!r.reader.Expects(row.slot, row.id) {
			r.missed = fmt.Errorf("%d was missed", row.id)
		}
	}
	if !r.keep {
		r.mark()
	}
}

// mark deletes what was published.
func (r *relay) mark() {
	for _, row := range r.unmarked {
		delete(r.db.rows, row.id)
		delete(r.known, row.id)
		r.done[row.id] = true
	}
	r.unmarked = nil
}

// check compares what was published, in order, with what was committed.
func check(published []row, committed []row) error {
	last, times := map[string]int64{}, map[int64]int{}
	for _, row := range published {
		if times[row.id]++; times[row.id] > 1 {
			return fmt.Errorf("%d was published twice", row.id)
		}
		if row.id < last[row.key] {
			return fmt.Errorf("%d was published after %d of the same key", row.id, last[row.key])
		}
		last[row.key] = row.id
	}
	for _, row := range committed {
		if times[row.id] == 0 {
			return fmt.Errorf("%d was lost", row.id)
		}
		delete(times, row.id)
	}
	for id := range times {
		return fmt.Errorf("%d was published, and never committed", id)
	}
	return nil
}
