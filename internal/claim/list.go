package claim

import "container/heap"

// place says which of the queue's collections a list is in. Where a list is follows from its front; place puts it
// there after every change of the front or of what is claimed.
type place int

const (
	nowhere   place = iota // empty, or something of it is claimed
	ready                  // in Queue.ready
	unloaded               // in Queue.unloaded
	isWaiting              // in Queue.waiting
	parked                 // in Queue.parked, under the topic in parkedAt
	isFrozen               // in Queue.frozenLists
)

// list holds the messages of one key that are known and not done, ascending by id.
type list struct {
	slot    int
	key     string
	entries []*entry
	claimed int
	loaded  int // claimed ones included
	// more is the id from which on the list must be read again, because its tail was dropped; 0 for a whole list.
	more int64

	where      place
	parkedAt   *fifo
	prev, next *list // in the fifo it is in
	due        int64 // of its front when it went into the heap
	at         int   // in the heap
}

// place puts l where its front says.
func (q *Queue) place(l *list) {
	switch {
	case l.claimed > 0:
		q.unplace(l)
	case len(l.entries) == 0:
		q.unplace(l)
		if l.key != "" && l.more == 0 {
			delete(q.lists, listID{l.slot, l.key})
		}
		if l.more == 0 {
			q.spareList(l)
		}
	case q.isFrozen(l.slot):
		q.put(l, isFrozen, &q.frozenLists)
	case l.entries[0].due > q.waiting.now:
		q.unplace(l)
		l.where, l.due = isWaiting, l.entries[0].due
		heap.Push(&q.waiting, l)
	case q.isPaused(l.entries[0].topic):
		q.put(l, parked, q.parked[l.entries[0].topic])
	case l.entries[0].msg == nil:
		q.put(l, unloaded, &q.unloaded)
	default:
		q.put(l, ready, &q.ready)
	}
}

func (q *Queue) isFrozen(slot int) bool {
	_, frozen := q.frozen[slot]
	return frozen
}

// put moves l to the end of f, unless it is in it.
func (q *Queue) put(l *list, where place, f *fifo) {
	if l.where == where && l.parkedAt == f {
		return
	}
	q.unplace(l)
	l.where, l.parkedAt = where, f
	f.push(l)
}

func (q *Queue) unplace(l *list) {
	switch l.where {
	case nowhere:
	case isWaiting:
		heap.Remove(&q.waiting, l.at)
	case ready, unloaded, parked, isFrozen:
		l.parkedAt.remove(l)
	}
	l.where, l.parkedAt = nowhere, nil
}

// promote moves lists whose time has come out of the heap.
func (q *Queue) promote(now int64) {
	q.waiting.now = max(q.waiting.now, now)
	for len(q.waiting.lists) > 0 && q.waiting.lists[0].due <= q.waiting.now {
		q.place(q.waiting.lists[0])
	}
}

// truncateLongest makes room by dropping the second half of the longest list, unless all are short already.
func (q *Queue) truncateLongest() bool {
	var longest *list
	for _, l := range q.lists {
		if longest == nil || len(l.entries) > len(longest.entries) {
			longest = l
		}
	}
	if longest == nil || len(longest.entries) < 4*q.perKey {
		return false
	}
	keep := len(longest.entries) / 2
	for i := keep; i < len(longest.entries); i++ {
		if longest.entries[i].claimed { // ids that came late may stand before it
			keep = i + 1
		}
	}
	if keep == len(longest.entries) {
		return false
	}
	longest.more = longest.entries[keep].id
	for _, e := range longest.entries[keep:] {
		q.load(e, nil)
		delete(q.entries, e.id)
		q.leaves(e)
	}
	clear(longest.entries[keep:])
	longest.entries = longest.entries[:keep]
	q.truncated[longest] = struct{}{}
	return true
}

// Refill returns the id from which on rows must be read again, because a truncated list has run low.
func (q *Queue) Refill() (from int64, wanted bool) {
	for l := range q.truncated {
		if len(l.entries) < q.perKey && (!wanted || l.more < from) {
			from, wanted = l.more, true
		}
	}
	return from, wanted
}

// AddRefill takes in rows, ascending, that a read of all ids from from, Refill's answer, up to through has shown;
// complete tells that nothing known to the caller's other reads lies above through. A list that was cut below from has a
// gap before what was read: it waits for a read of its own.
func (q *Queue) AddRefill(rows []Row, from, through int64, complete bool) {
	full := map[*list]bool{} // had no room for a row; more stays where it is
	for _, r := range rows {
		l := q.lists[listID{r.Slot, r.Key}]
		if l == nil || l.more < from || r.ID < l.more {
			continue
		}
		if full[l] = full[l] || len(l.entries) >= 2*q.perKey; full[l] {
			continue
		}
		l.more = r.ID + 1
		if _, done := q.settled[r.ID]; !done {
			q.insert(l, r)
		}
	}
	for l := range q.truncated {
		if full[l] || l.more < from || l.more > through+1 {
			continue
		}
		l.more = through + 1
		if complete {
			l.more = 0
			delete(q.truncated, l)
			q.place(l) // an empty one goes
		}
	}
}

// fifo is a list of lists, linked through them.
type fifo struct {
	head, tail *list
	n          int
}

func (f *fifo) push(l *list) {
	l.prev, l.next = f.tail, nil
	if f.tail != nil {
		f.tail.next = l
	} else {
		f.head = l
	}
	f.tail = l
	f.n++
}

func (f *fifo) remove(l *list) {
	if l.prev != nil {
		l.prev.next = l.next
	} else {
		f.head = l.next
	}
	if l.next != nil {
		l.next.prev = l.prev
	} else {
		f.tail = l.prev
	}
	l.prev, l.next = nil, nil
	f.n--
}

// dueHeap orders lists by when their front is due. now is the latest time it was told.
type dueHeap struct {
	lists []*list
	now   int64
}

func (h *dueHeap) Len() int           { return len(h.lists) }
func (h *dueHeap) Less(i, j int) bool { return h.lists[i].due < h.lists[j].due }
func (h *dueHeap) Swap(i, j int) {
	h.lists[i], h.lists[j] = h.lists[j], h.lists[i]
	h.lists[i].at, h.lists[j].at = i, j
}

func (h *dueHeap) Push(x any) {
	l := x.(*list) //nolint:forcetypeassert // only lists are pushed
	l.at = len(h.lists)
	h.lists = append(h.lists, l)
}

func (h *dueHeap) Pop() any {
	l := h.lists[len(h.lists)-1]
	h.lists[len(h.lists)-1] = nil
	h.lists = h.lists[:len(h.lists)-1]
	return l
}
