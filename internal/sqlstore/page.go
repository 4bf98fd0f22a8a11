package sqlstore

import (
	"cmp"
	"context"
	"math"
	"slices"

	"github.com/watermill-outbox/outbox"
)

// page is what a read has shown.
type page struct {
	ids  []int64 // of all rows
	rows []*row  // those in slots of this instance
	due  any     // of the last row
	cut  bool    // there may be more
}

func (p *page) last() int64 { return p.ids[len(p.ids)-1] }

// pageQuery returns a read statement that fills p with up to limit rows of up to maxBytes, or one that is larger.
func (e *Engine) pageQuery(p *page, query string, limit, maxBytes int, args ...any) Query {
	args = append(args, limit)
	ours := int64(-1)
	if e.dialect.Slots > 1 {
		ours = e.slotBits()
		args = append(args, ours)
	}
	r, bytes := &row{}, 0
	return Query{SQL: e.sql[query], Args: args, Each: func(s Scanner) (bool, error) {
		if err := r.scan(s); err != nil {
			return false, err
		}
		p.ids, p.due = append(p.ids, r.id), r.due
		if ours>>r.slot&1 == 1 {
			r.size = r.msg.Size() + len(r.headers)
			e.complete(r, outbox.StatusProcessing)
			bytes += r.size
			p.rows = append(p.rows, r)
			r = &row{}
		}
		p.cut = bytes > maxBytes || len(p.ids) == limit
		return !p.cut, nil
	}}
}

// rowsFor returns how many rows to ask for if n are wanted, and maxBytes may be taken: the server sends all of them, so it
// goes by how large they were the last time. The caller holds claimMu.
func (e *Engine) rowsFor(n, maxBytes int) int {
	if e.rowSize == 0 {
		return min(n, minRead) // nothing is known yet
	}
	fit := maxBytes / e.rowSize
	return min(n, fit+fit/8+1)
}

// learn takes the size of rows from a page.
func (e *Engine) learn(p *page) {
	if len(p.ids) == 0 {
		return
	}
	bytes := 0
	for _, r := range p.rows {
		bytes += r.size
	}
	e.rowSize = max(bytes/len(p.ids), 1)
}

// slotBits are the slots that this instance holds, whose payloads are wanted.
func (e *Engine) slotBits() (bits int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for slot := range e.leases {
		bits |= 1 << slot
	}
	return bits
}

// read runs a read statement by itself.
func (e *Engine) read(ctx context.Context, query string, limit, maxBytes int, args ...any) (page, error) {
	var p page
	q := e.pageQuery(&p, query, limit, maxBytes, args...)
	err := e.db.Query(ctx, q.SQL, q.Args, q.Each)
	return p, err
}

// merge puts two pages together, by id, as far as both are whole and maxBytes goes.
func merge(a, b page, maxBytes int) page {
	if len(a.ids) == 0 {
		return b
	}
	m := page{ids: slices.Concat(a.ids, b.ids), rows: slices.Concat(a.rows, b.rows), cut: a.cut || b.cut}
	slices.Sort(m.ids)
	slices.SortFunc(m.rows, func(x, y *row) int { return cmp.Compare(x.id, y.id) })
	through, bytes := int64(math.MaxInt64), 0
	for _, p := range []page{a, b} {
		if p.cut {
			through = min(through, p.last())
		}
	}
	for i, r := range m.rows {
		if bytes > maxBytes && i > 0 {
			through = min(through, r.id-1)
			break
		}
		bytes += r.size
	}
	beyond := func(id int64) bool { return id > through }
	if at := slices.IndexFunc(m.ids, beyond); at >= 0 {
		m.ids, m.cut = m.ids[:at], true
	}
	if at := slices.IndexFunc(m.rows, func(r *row) bool { return beyond(r.id) }); at >= 0 {
		m.rows = m.rows[:at]
	}
	return m
}
