// Package scan decides which ids of the outbox are to be read next, where transactions may commit ids below those that
// were read already. It knows no database: whoever owns a [Reader] does the reading and tells it what was seen.
//
// An id is taken from a sequence before its transaction commits, so a lower one can appear behind the cursor. It must
// not be lost, and the fetch that shows a later message of its key must show it, too, or the two change places. The
// database tells who can still be late: a transaction that has taken an id holds a lock on the sequence to its end.
//
// A fetch has one snapshot, and four steps: Begin says what to read; whoever reads takes the snapshot and reads that;
// then, and not before, it lists the transactions that hold the sequence, and Listed says what else is to be read in the
// same snapshot; End takes what was seen. Where nobody is waited for, and what was read leaves no id out, there is no
// list: nothing can come late.
//
// Invariants:
//
//   - Every id up to the cursor was seen by a read, or is in a span, or is settled: no transaction that could commit it
//     was running when a later snapshot did not show it.
//   - A span waits for every transaction that may commit one of its ids, until it was read in a snapshot that is younger
//     than a list without that transaction.
//   - What End calls seen is, of all that is visible in the fetch's snapshot, a prefix by id: nothing enters without
//     what comes before it.
package scan

import (
	"maps"
	"math"
	"slices"
)

// Holder is a transaction that holds the sequence.
type Holder struct {
	ID string
	// Prepared is a transaction that waits for COMMIT PREPARED. It has another ID than it had before.
	Prepared bool
}

// Reader is how far an instance has read. It is not safe for concurrent use.
type Reader struct {
	// InOrder is for a database with one writer at a time: nothing comes late.
	InOrder bool

	cursor int64
	spans  []*span // ascending

	// No id up to settled comes late any more: every snapshot from now on shows what there is of them.
	settled int64
	// When all of candidateWaits have ended, so it is with the ids up to candidate.
	candidate      int64
	candidateWaits holders
	lastValue      int64 // of the sequence, at the last list

	// Slots that were acquired later than the others have been read up to caughtUp only.
	catching map[int]struct{}
	caughtUp int64
}

type holders map[Holder]struct{}

// unlisted stands in a span's waits for those who ended before the others were listed. No list has it.
var unlisted = Holder{}

// span is a range of ids that was read, with those that the read did not show.
type span struct {
	unseen []Run
	waits  holders
	// missed are those of waits that the last list did not have. They may have ended after its snapshot, so unseen is to be
	// read in the next one, too.
	missed holders
}

func (s *span) last() int64 { return s.unseen[len(s.unseen)-1].To }

// Fetch is one round of reading.
type Fetch struct {
	r *Reader
	// After is where to read on: the ids above it.
	After int64
	// Again are ids to be read together with them.
	Again []Run
	// CatchUp are the ids to be read for slots that were acquired late; From is above To if there are none.
	CatchUp Run

	listed bool
	list   holders
	last   int64
}

// Begin says what to read in the next snapshot.
func (r *Reader) Begin() *Fetch {
	f := &Fetch{r: r, After: r.cursor, CatchUp: Run{1, 0}}
	for _, s := range r.spans {
		if len(s.missed) > 0 {
			f.Again = append(f.Again, s.unseen...)
		}
	}
	if len(r.catching) > 0 {
		f.CatchUp = Run{r.caughtUp + 1, r.cursor}
	}
	return f
}

// Quiet tells that nothing can come late of what was read before: nothing is to be read again, and nothing in the snapshot
// of the list.
func (f *Fetch) Quiet() bool { return len(f.r.spans) == 0 }

// Gapless tells that nothing can come late of what was read now, either. The holders of a quiet fetch that is gapless need
// not be listed.
func (f *Fetch) Gapless(seen []int64) bool { return len(f.r.passes(seen)) == 0 }

// Listed takes the holders, and the last value of the sequence. It returns ids that must be read in the snapshot of this
// fetch, because one who might have written them has ended.
func (f *Fetch) Listed(list []Holder, lastValue int64) []Run {
	f.listed, f.list, f.last = true, make(holders, len(list)), lastValue
	for _, h := range list {
		f.list[h] = struct{}{}
	}
	var missed []Run
	for _, s := range f.r.spans {
		if len(s.missed) == 0 && len(s.waits.without(f.list)) > 0 {
			missed = append(missed, s.unseen...)
		}
	}
	return missed
}

// Through returns how far CatchUp counts as read, if the read of it has come through caughtUp: not past the cut of what was
// seen, because what has come late above that goes before what is caught up with there.
func (f *Fetch) Through(caughtUp int64, seen []int64, cut bool) int64 {
	if cut && len(seen) > 0 {
		return min(caughtUp, seen[len(seen)-1])
	}
	return caughtUp
}

// End takes the ids that were seen, ascending, of what Begin and Listed have asked for. With cut true there may be more
// above the last of them: then nothing above counts as read. caughtUp is what Through has returned.
func (f *Fetch) End(seen []int64, cut bool, caughtUp int64) {
	r := f.r
	end := int64(math.MaxInt64)
	if cut {
		end = 0
		if len(seen) > 0 {
			end = seen[len(seen)-1]
		}
	}
	for _, s := range r.spans {
		s.update(f, seen, end)
	}
	r.spans = slices.DeleteFunc(r.spans, func(s *span) bool {
		return len(s.unseen) == 0 || len(s.waits) == 0
	})
	r.advance(f, seen)
	r.settle(f)
	r.merge()
	if len(r.catching) > 0 {
		if r.caughtUp = max(r.caughtUp, caughtUp); r.caughtUp >= f.CatchUp.To {
			clear(r.catching) // what is above was read in this same snapshot
		}
	}
}

// update takes what a fetch has shown of the span. Past end it has not been read, and stays due.
func (s *span) update(f *Fetch, seen []int64, end int64) {
	last := s.last()
	if s.unseen = without(s.unseen, seen); last > end {
		return
	}
	for h := range s.missed { // this snapshot is younger than the list without them
		delete(s.waits, h)
	}
	s.missed = s.waits.without(f.list)
	s.waits.addPrepared(f.list)
}

// advance moves the cursor over what was read behind it. The ids in between that were not seen make a new span.
func (r *Reader) advance(f *Fetch, seen []int64) {
	at, _ := slices.BinarySearch(seen, r.cursor+1)
	if seen = seen[at:]; len(seen) == 0 {
		return
	}
	if unseen := r.passes(seen); len(unseen) > 0 {
		s := &span{unseen: unseen, waits: holders{unlisted: {}}, missed: holders{unlisted: {}}}
		maps.Copy(s.waits, f.list)
		r.spans = append(r.spans, s)
	}
	r.cursor = seen[len(seen)-1]
}

// passes returns the ids between the cursor and the last of seen, which are above it, that were not seen and may come late.
func (r *Reader) passes(seen []int64) []Run {
	if r.InOrder {
		return nil
	}
	return above(gaps(r.cursor, seen), r.settled)
}

// settle finds ids that nobody can commit any more. Whoever has one up to the sequence's last value held it when that
// was read, or had ended; the list is younger.
func (r *Reader) settle(f *Fetch) {
	if !f.listed {
		return
	}
	if r.candidateWaits == nil {
		r.candidate, r.candidateWaits = r.lastValue, maps.Clone(f.list)
	}
	r.candidateWaits.addPrepared(f.list)
	for h := range r.candidateWaits.without(f.list) {
		delete(r.candidateWaits, h)
	}
	if len(r.candidateWaits) == 0 {
		r.settled, r.candidateWaits = r.candidate, nil
	}
	r.lastValue = f.last
}

// merge joins neighbours that wait for the same.
func (r *Reader) merge() {
	kept := r.spans[:0]
	for _, s := range r.spans {
		if n := len(kept); n > 0 && maps.Equal(kept[n-1].waits, s.waits) {
			kept[n-1].unseen = append(kept[n-1].unseen, s.unseen...)
		} else {
			kept = append(kept, s)
		}
	}
	clear(r.spans[len(kept):])
	r.spans = kept
}

// without returns those of h that are not in list.
func (h holders) without(list holders) (missed holders) {
	for holder := range h {
		if _, holds := list[holder]; !holds {
			if missed == nil {
				missed = holders{}
			}
			missed[holder] = struct{}{}
		}
	}
	return missed
}

// addPrepared adds the prepared transactions of a list: each may be one of h under its new name.
func (h holders) addPrepared(list holders) {
	for holder := range list {
		if holder.Prepared {
			h[holder] = struct{}{}
		}
	}
}
