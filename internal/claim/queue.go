// Package claim decides which of the known messages may be claimed. It is the one structure behind order per key,
// blocking by a failed message, retries and bounded memory, and it knows no database, clock or goroutine: whoever owns
// a [Queue] tells it what a read showed and what became of a claim, under a lock of its own.
//
// Invariants, for each key:
//
//   - Its list holds the ids that are known and not done, ascending.
//   - Its front alone decides: the key may be claimed if the front is loaded, due, of a topic that is not paused, and
//     nothing of the key is claimed.
//   - A claim takes a run from the front that ends before the first message for which that does not hold.
//   - Below the point from where a truncated list must be read again, nothing of the key is missing that a read showed.
package claim

import (
	"cmp"
	"slices"

	"github.com/watermill-outbox/outbox"
)

// Queue holds the messages that a relay instance knows of and has not settled.
type Queue struct {
	perKey    int // how many messages of a key are claimed, and loaded, at once
	capacity  int // how many entries there may be in all
	idleLimit int // how many bytes of payload may wait unclaimed before new rows come in without theirs

	entries map[int64]*entry
	lists   map[listID]*list // of messages with a key; one without has a list to itself
	claimed int
	idle    int // bytes loaded and not claimed

	ready    fifo // lists whose front may be claimed
	unloaded fifo // lists whose front would be ready if it were loaded
	waiting  dueHeap
	parked   map[string]*fifo // by paused topic

	frozen      map[int]struct{} // slots that nothing is claimed of
	frozenLists fifo
	claimedOf   map[int]int // by slot

	truncated map[*list]struct{}
	evicted   eviction
	// patience is how many more rows come in before room is looked for again, after none was found.
	patience int

	// To be used again: most keys and messages come and go within one read.
	spareEntries []*entry
	spareLists   []*list

	// reading is true from before a read's snapshot until its rows were added; settled holds what was settled
	// meanwhile, which the snapshot may still show.
	reading bool
	settled map[int64]struct{}
}

type listID struct {
	slot int
	key  string
}

// entry is a known message. msg is nil while its payload is not in memory; a claimed entry is always loaded.
type entry struct {
	id      int64
	due     int64
	topic   string
	msg     *outbox.Message
	size    int // of msg
	claimed bool
	list    *list
}

// New returns an empty Queue. perKey is the most messages of one key that are claimed at once, capacity the number of
// entries past which the longest list loses its tail, idleBytes the size of unclaimed messages past which rows come in
// without their payloads.
func New(perKey, capacity, idleBytes int) *Queue {
	return &Queue{
		perKey: perKey, capacity: capacity, idleLimit: idleBytes,
		entries: map[int64]*entry{}, lists: map[listID]*list{},
		frozen: map[int]struct{}{}, claimedOf: map[int]int{},
		parked: map[string]*fifo{}, truncated: map[*list]struct{}{}, settled: map[int64]struct{}{}, evicted: newEviction(),
	}
}

// Row is what a read shows of a message.
type Row struct {
	ID      int64
	Slot    int
	Key     string
	Topic   string
	Due     int64           // on the caller's monotonic scale; anything in the past means now
	Message *outbox.Message // nil if the payload was not read
}

// BeginRead must be called before the snapshot of a read is taken, EndRead when its rows have been added. In between,
// what is settled stays remembered, so that an older snapshot cannot bring it back.
func (q *Queue) BeginRead() {
	q.reading = true
	clear(q.settled)
}

// EndRead ends what BeginRead began.
func (q *Queue) EndRead() {
	q.reading = false
	clear(q.settled)
}

// Add takes in a row that a read showed. Rows that are known, or were settled since BeginRead, are ignored.
func (q *Queue) Add(r Row) {
	if _, known := q.entries[r.ID]; known {
		return
	}
	if _, done := q.settled[r.ID]; done {
		return
	}
	if !q.isBeforeKnown(r) && q.evicted.drops(r) {
		return
	}
	l := q.listOf(r)
	if l.more != 0 && r.ID >= l.more {
		return // behind the gap of a truncated list; Refill brings it
	}
	q.insert(l, r)
	if q.patience--; len(q.entries) > q.capacity && q.patience <= 0 && !q.truncateLongest() && !q.evict() {
		q.patience = q.capacity / 16 // the search is long
	}
}

func (q *Queue) listOf(r Row) *list {
	if r.Key == "" {
		return q.newList(r.Slot, "")
	}
	id := listID{r.Slot, r.Key}
	l := q.lists[id]
	if l == nil {
		l = q.newList(r.Slot, r.Key)
		q.lists[id] = l
	}
	return l
}

func (q *Queue) insert(l *list, r Row) {
	e := q.newEntry()
	e.id, e.due, e.topic, e.list = r.ID, r.Due, r.Topic, l
	q.entries[r.ID] = e
	at := len(l.entries)
	if at > 0 && l.entries[at-1].id > r.ID {
		at, _ = slices.BinarySearchFunc(l.entries, r.ID, func(e *entry, id int64) int { return cmp.Compare(e.id, id) })
	}
	if at < q.perKey && l.where != isWaiting && l.where != parked && !q.isPaused(r.Topic) && !q.Sated() {
		q.load(e, r.Message)
	} // else its turn is far off
	l.entries = slices.Insert(l.entries, at, e)
	if at == 0 || l.where == nowhere {
		q.place(l)
	}
}

// load gives an unclaimed entry its message, or takes it away if m is nil.
func (q *Queue) load(e *entry, m *outbox.Message) {
	q.idle -= e.size
	if e.msg != nil {
		e.list.loaded--
	}
	e.msg, e.size = m, 0
	if m != nil {
		e.size = m.Size()
		e.list.loaded++
	}
	q.idle += e.size
}

// Claim returns messages that may be published: at most limit, at most maxBytes in size unless the first is larger.
// Where many keys are ready each gives a few, so that one does not take all.
func (q *Queue) Claim(now int64, limit, maxBytes int) []*outbox.Message {
	q.promote(now)
	now = q.waiting.now // where lists are was decided by it
	if q.ready.n == 0 || limit <= 0 {
		return nil
	}
	quota := min(max(limit/q.ready.n, 1), q.perKey)
	claimed := make([]*outbox.Message, 0, min(limit, q.ready.n*quota))
	bytes := 0
	for len(claimed) < limit {
		l := q.ready.head
		if l == nil {
			break
		}
		for _, e := range l.entries[:min(len(l.entries), quota, limit-len(claimed))] {
			if !q.mayGo(e, now) || (len(claimed) > 0 && bytes+e.size > maxBytes) {
				break
			}
			bytes += e.size
			q.idle -= e.size
			e.claimed = true
			l.claimed++
			q.claimed++
			q.claimedOf[l.slot]++
			claimed = append(claimed, e.msg)
		}
		if l.claimed == 0 {
			break // the byte budget is used up
		}
		q.place(l)
	}
	return claimed
}

func (q *Queue) mayGo(e *entry, now int64) bool {
	return e.msg != nil && e.due <= now && !q.isPaused(e.topic)
}

// Ready returns how many keys could be claimed from.
func (q *Queue) Ready(now int64) int {
	q.promote(now)
	return q.ready.n
}

// Len returns the number of known messages, claimed ones included; Claimed those alone.
func (q *Queue) Len() int { return len(q.entries) }

// Claimed returns the number of claimed messages.
func (q *Queue) Claimed() int { return q.claimed }

// Full tells that there is no room, and that none could be made: stop reading until something was settled.
func (q *Queue) Full() bool {
	return len(q.entries) >= q.capacity && !q.truncateLongest() && !q.evict()
}

// Sated tells that as much payload waits unclaimed as may.
func (q *Queue) Sated() bool { return q.idle >= q.idleLimit }

// Room is how many bytes of payloads may be added before that.
func (q *Queue) Room() int { return max(q.idleLimit-q.idle, 0) }

// Wanted returns up to limit ids whose payloads are needed for the next claims: call Load or Gone for each. While the
// queue is sated it asks for one key's at a time, and only if nothing else could be claimed.
func (q *Queue) Wanted(now int64, limit int) []int64 {
	q.promote(now)
	if q.Sated() {
		if q.ready.n > 0 {
			return nil
		}
		limit = 1
	}
	var ids []int64
	for l := q.unloaded.head; l != nil && len(ids) < limit; l = l.next {
		for _, e := range l.entries[:min(len(l.entries), q.perKey, limit-len(ids))] {
			if e.msg == nil {
				ids = append(ids, e.id)
			}
		}
	}
	return ids
}

// Load gives the message of a known id its payload. When it is due stays as it was: those behind the front may have
// waits of their own.
func (q *Queue) Load(id int64, m *outbox.Message) {
	e := q.entries[id]
	if e == nil || e.claimed {
		return
	}
	q.load(e, m)
	q.place(e.list)
}

// Gone removes a message whose row has vanished: somebody else settled or deleted it.
func (q *Queue) Gone(id int64) {
	if e := q.entries[id]; e != nil && !e.claimed {
		q.remove(e)
	}
}

// Get returns a claimed message and its slot.
func (q *Queue) Get(id int64) (m *outbox.Message, slot int, ok bool) {
	e := q.entries[id]
	if e == nil || !e.claimed {
		return nil, 0, false
	}
	return e.msg, e.list.slot, true
}

// Done removes a message that was published or set aside. Call it after that was committed. The message need not be
// claimed any more, nor known: its lease may have been lost, and taken again, since it was.
func (q *Queue) Done(id int64) {
	if q.reading {
		q.settled[id] = struct{}{}
	}
	e := q.entries[id]
	if e == nil {
		return
	}
	if e.claimed {
		q.unclaim(e)
	}
	q.remove(e)
}

// Postpone puts a claimed message back into its place, to be loaded again when it is due. Those behind it in its key
// wait, and give up their payloads.
func (q *Queue) Postpone(id, due int64) {
	e := q.entries[id]
	if e == nil || !e.claimed {
		return
	}
	q.unclaim(e)
	e.due = due
	l := e.list
	for i := slices.Index(l.entries, e); i < len(l.entries) && l.loaded > l.claimed; i++ { // the rest of a long list is not loaded
		if other := l.entries[i]; !other.claimed {
			q.load(other, nil)
		}
	}
	q.place(l)
}

// Release puts a claimed message back: it may be claimed again at once.
func (q *Queue) Release(id int64) {
	e := q.entries[id]
	if e == nil || !e.claimed {
		return
	}
	q.unclaim(e)
	if front := e.list.entries[0]; q.idle > q.idleLimit || (front != e && front.msg == nil) {
		q.load(e, nil) // there is enough without it, or it waits behind one that was postponed
	}
	q.place(e.list)
}

func (q *Queue) unclaim(e *entry) {
	q.idle += e.size
	e.claimed = false
	e.list.claimed--
	q.claimed--
	q.claimedOf[e.list.slot]--
}

// remove takes an entry that is not claimed out of the queue.
func (q *Queue) remove(e *entry) {
	l := e.list
	q.load(e, nil)
	delete(q.entries, e.id)
	q.leaves(e)
	if at := slices.Index(l.entries, e); at == 0 && len(l.entries) > maxSpareEntries {
		l.entries[0] = nil
		l.entries = l.entries[1:]
	} else {
		l.entries = slices.Delete(l.entries, at, at+1)
	}
	q.spareEntry(e)
	q.place(l)
}

// DropSlot forgets all messages of a slot whose lease was lost, and returns the claimed ones among them.
func (q *Queue) DropSlot(slot int) []*outbox.Message {
	var claimed []*outbox.Message
	for id, e := range q.entries {
		if e.list.slot != slot {
			continue
		}
		q.leaves(e)
		if e.claimed {
			claimed = append(claimed, e.msg)
			q.claimed--
			q.claimedOf[slot]--
		} else {
			q.load(e, nil)
		}
		delete(q.entries, id)
		q.unplace(e.list)
		delete(q.truncated, e.list)
		delete(q.lists, listID{slot, e.list.key})
	}
	for l := range q.truncated { // lists that have lost all they had
		if l.slot == slot {
			q.unplace(l)
			delete(q.truncated, l)
			delete(q.lists, listID{slot, l.key})
		}
	}
	return claimed
}

// Freeze replaces the set of slots that nothing more is claimed of: those to be given back.
func (q *Queue) Freeze(slots []int) {
	clear(q.frozen)
	for _, slot := range slots {
		q.frozen[slot] = struct{}{}
	}
	q.replace(&q.frozenLists, &q.ready, &q.unloaded)
}

// ClaimedOf returns the number of claimed messages of a slot.
func (q *Queue) ClaimedOf(slot int) int { return q.claimedOf[slot] }

// replace puts all lists of some collections where they belong.
func (q *Queue) replace(collections ...*fifo) {
	for _, f := range collections {
		for l := f.head; l != nil; {
			next := l.next
			q.place(l)
			l = next
		}
	}
}

// Pause replaces the set of topics whose messages are left out.
func (q *Queue) Pause(topics []string) {
	paused := make(map[string]struct{}, len(topics))
	for _, topic := range topics {
		paused[topic] = struct{}{}
	}
	for topic, lists := range q.parked {
		if _, still := paused[topic]; !still {
			delete(q.parked, topic)
			for lists.head != nil {
				q.place(lists.head)
			}
		}
	}
	for _, topic := range topics {
		if q.parked[topic] == nil {
			q.parked[topic] = &fifo{}
		}
	}
	q.replace(&q.ready, &q.unloaded)
}

func (q *Queue) isPaused(topic string) bool { return len(q.parked) > 0 && q.parked[topic] != nil }
