package scan

import "sort"

// What changes the course of things between two fetches, never within one.

// Acquired notes slots that this instance has acquired beside those it holds: their messages are read from the
// beginning, while the others go on.
func (r *Reader) Acquired(slots ...int) {
	if r.catching == nil {
		r.catching = map[int]struct{}{}
	}
	for _, slot := range slots {
		r.catching[slot] = struct{}{}
	}
	r.caughtUp = 0
}

// Admits tells whether a row that a fetch has shown may enter, given through what id CatchUp was read: not one of a slot
// whose earlier rows are yet to be read.
func (f *Fetch) Admits(slot int, id, caughtUp int64) bool {
	return !f.CatchesUp(slot) || id <= caughtUp || caughtUp >= f.CatchUp.To
}

// CatchesUp tells whether the slot is one of those that CatchUp is read for.
func (f *Fetch) CatchesUp(slot int) bool {
	_, catching := f.r.catching[slot]
	return catching
}

// Expects tells whether a row up to the cursor is to be read yet: it came late, or its slot was acquired late. Between
// two fetches all others have been seen.
func (r *Reader) Expects(slot int, id int64) bool {
	if _, catching := r.catching[slot]; catching && id > r.caughtUp {
		return true
	}
	for _, s := range r.spans {
		if id <= s.last() {
			at := sort.Search(len(s.unseen), func(i int) bool { return s.unseen[i].To >= id })
			return s.unseen[at].From <= id
		}
	}
	return false
}

// Back has the ids above id read again.
func (r *Reader) Back(id int64) {
	if id >= r.cursor {
		return
	}
	r.cursor = id
	kept := r.spans[:0]
	for _, s := range r.spans {
		if s.unseen = through(s.unseen, id); len(s.unseen) > 0 {
			kept = append(kept, s)
		}
	}
	clear(r.spans[len(kept):])
	r.spans = kept
}

// Restarted notes that the server was started anew: whoever held the sequence has ended, and names are given again.
// Only prepared transactions have survived, and the next list tells of those that have not ended before it. Ids whose log
// was not written yet when the server crashed may be given again, so none is settled.
func (r *Reader) Restarted() {
	r.settled, r.candidateWaits, r.lastValue = 0, nil, 0
	for _, s := range r.spans {
		s.waits, s.missed = holders{unlisted: {}}, nil
	}
}

// Reset has everything read again: ids may have been given to other messages.
func (r *Reader) Reset() { *r = Reader{InOrder: r.InOrder} }

// Cursor returns the id up to which everything was read, or is waited for.
func (r *Reader) Cursor() int64 { return r.cursor }
