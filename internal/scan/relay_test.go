package scan_test

import (
	"maps"
	"slices"
	"strconv"

	"github.com/watermill-outbox/outbox/internal/claim"
	"github.com/watermill-outbox/outbox/internal/scan"
)

// relay is an instance: a Reader, the Queue that it feeds, and the reads in between, as internal/sqlstore makes them.
type relay struct {
	db     *database
	broker *broker
	reader scan.Reader
	queue  *claim.Queue
	slots  map[int]bool

	limit, budget int  // rows of a read, and of all that a fetch reads by ids and behind the cursor
	keeps         bool // published messages are marked by mark, not at once
	greedy        bool // each fetch begins with taking all slots that are free
	listFirst     bool // it sees the list of holders before the sequence
	looksAtOnce   bool // both in one step

	cold     bool // its next fetch reads no new rows, as while the queue is full
	looks    bool // its next fetch looks at the server, though there may be no need
	refusals int  // messages that the broker refuses

	epoch, history int // of the server, as it was last seen
	now            int64
	unmarked       []publication

	step             step
	fetch            *scan.Fetch
	connected        int // to the server of this epoch
	snapshot         []row
	hot, late, catch []row
	list             []scan.Holder
	last             int64

	reread   int64 // ids that were read again, in all
	asked    int64 // in this fetch
	calm     int   // the last fetches that have passed nothing, with the same list
	calmList []scan.Holder
}

// publication is a message that was published and is not marked yet, and by which history of ids it was known.
type publication struct {
	row
	history int
}

// step is what the relay does next: take a snapshot, and read in it what is known to be due; look at one of the holders
// and the sequence, and then at the other, and read what that tells it to; take in what was read.
type step int

const (
	begin step = iota
	look
	lookOn
	end
)

const much = 1 << 30

func newRelay(db *database, b *broker) *relay {
	r := &relay{db: db, broker: b, limit: 9, budget: 9}
	r.forget()
	return r
}

func (r *relay) forget() {
	r.queue = claim.New(2, much, much)
	r.slots = map[int]bool{}
	r.reader.Reset()
	r.calm = 0
}

// gain takes slots, between two fetches.
func (r *relay) gain(slots ...int) {
	if len(r.slots) == 0 {
		r.reader.Reset()
	} else {
		r.reader.Acquired(slots...)
	}
	for _, slot := range slots {
		r.slots[slot] = true
	}
	r.calm = 0
}

// lose ends the lease of a slot, at any time.
func (r *relay) lose(slot int) {
	delete(r.slots, slot)
	r.queue.DropSlot(slot)
	r.broker.lose(slot, r.unmarked)
}

// back has it read on from behind id, between two fetches.
func (r *relay) back(id int64) {
	r.reader.Back(id)
	r.calm = 0
}

// advance makes the next step.
func (r *relay) advance() {
	if r.now++; r.step != begin && r.connected != r.db.epoch {
		r.abandon()
	}
	switch r.step {
	case begin:
		r.begin()
	case look, lookOn:
		if r.looksAtOnce || r.listFirst == (r.step == look) {
			r.list = r.db.holders()
		}
		if r.looksAtOnce || r.listFirst == (r.step == lookOn) {
			r.last = r.db.next - 1
		}
		if r.step++; r.looksAtOnce {
			r.step = end
		}
		if r.step == end {
			r.listed()
		}
	case end:
		r.end()
		r.cold, r.looks = false, false
		if r.publish(); !r.keeps {
			r.mark()
		}
	}
}

func (r *relay) abandon() {
	r.queue.EndRead()
	r.step = begin
}

func (r *relay) begin() {
	if free := slices.DeleteFunc([]int{0, 1}, func(slot int) bool { return r.slots[slot] }); r.greedy && len(free) > 0 {
		r.gain(free...)
	}
	for _, id := range r.queue.Wanted(r.now, much) {
		if row, found := r.db.find(id); found {
			r.queue.Load(id, row.msg)
		} else {
			r.queue.Gone(id)
		}
	}
	r.queue.BeginRead()
	r.fetch, r.snapshot, r.connected, r.asked = r.reader.Begin(), r.db.rows, r.db.epoch, 0
	r.late, r.hot = r.in(r.fetch.Again), nil
	r.catch = r.between(r.fetch.CatchUp.From, r.fetch.CatchUp.To, r.limit)
	if !r.cold {
		r.hot = r.between(r.fetch.After+1, 1<<62, r.limit)
	}
	r.step = look
	sameServer := r.epoch == r.db.epoch && r.history == r.db.history
	if r.fetch.Quiet() && len(r.catch) == 0 && r.fetch.Gapless(idsOf(r.hot)) && (sameServer || len(r.hot) == 0) && !r.looks {
		r.step = end
	}
}

func idsOf(rows []row) []int64 {
	ids := make([]int64, len(rows))
	for i, row := range rows {
		ids[i] = row.id
	}
	return ids
}

func (r *relay) between(from, to int64, limit int) []row {
	at, _ := slices.BinarySearchFunc(r.snapshot, from, byID)
	rows, n := r.snapshot[at:], 0
	for n < min(limit, len(rows)) && rows[n].id <= to {
		n++
	}
	return rows[:n:n]
}

func (r *relay) in(runs []scan.Run) (rows []row) {
	for _, run := range runs {
		r.asked += run.To - run.From + 1
		rows = append(rows, r.between(run.From, run.To, much)...)
	}
	return rows
}

// listed takes what the look has shown.
func (r *relay) listed() {
	switch {
	case r.history != r.db.history:
		for slot := range maps.Clone(r.slots) {
			r.lose(slot)
		}
		r.forget()
		r.abandon()
	case r.epoch != r.db.epoch:
		r.reader.Restarted()
		r.calm = 0
		r.abandon()
	default:
		r.late = append(r.late, r.in(r.fetch.Listed(r.list, r.last))...)
		slices.SortFunc(r.late, func(a, b row) int { return byID(a, b.id) })
		r.count()
	}
	r.epoch, r.history = r.db.epoch, r.db.history
}

// count counts what is read again. Where nobody has ended and nothing was passed that is nothing.
func (r *relay) count() {
	r.reread += r.asked
	if !slices.Equal(r.list, r.calmList) {
		r.calm, r.calmList = 0, r.list
	}
	if r.calm > 1 && r.asked > 0 {
		r.broker.failf("%d ids are read again, and nobody has ended", r.asked)
	}
}

// end takes in one prefix, by id, of what the reads have shown.
func (r *relay) end() {
	shown := slices.Concat(r.late, r.hot)
	cut := len(shown) > r.budget || len(r.hot) == r.limit
	shown = shown[:min(len(shown), r.budget)]
	ids := idsOf(shown)
	caughtUp := r.fetch.CatchUp.To
	if len(r.catch) == r.limit {
		caughtUp = r.catch[r.limit-1].id
	}
	caughtUp = r.fetch.Through(caughtUp, ids, cut)
	entered := [2]int64{} // the last of each slot
	for _, row := range r.catch {
		if r.fetch.CatchesUp(row.slot()) && row.id <= caughtUp {
			entered[row.slot()] = r.enter(row)
		}
	}
	for _, row := range shown {
		if r.fetch.Admits(row.slot(), row.id, caughtUp) {
			entered[row.slot()] = max(entered[row.slot()], r.enter(row))
		}
	}
	before, isKnown := r.reader.Cursor(), r.history == r.db.history // else it will start over
	if isKnown {
		r.verifyReads(shown, entered)
	}
	if len(shown)+len(r.catch) > 0 && (r.epoch != r.db.epoch || !isKnown) {
		r.broker.failf("rows have entered of a server that is not the one before")
	}
	r.fetch.End(ids, cut, caughtUp)
	if r.calm++; cut || r.reader.Cursor() != before {
		r.calm = 0
	}
	if isKnown {
		r.verify(ids)
	}
	r.queue.EndRead()
	r.step = begin
}

func (r *relay) enter(row row) int64 {
	if r.slots[row.slot()] {
		r.queue.Add(known(row))
	}
	return row.id
}

func known(r row) claim.Row {
	return claim.Row{ID: r.id, Slot: r.slot(), Key: r.msg.Key, Topic: r.msg.Topic, Message: r.msg}
}

// nowhere is a slot that was not acquired late.
const nowhere = -1

// verifyReads looks whether all that the snapshot shows up to the cursor was read, but what is to be caught up with, and
// that nothing has entered without what comes before it.
func (r *relay) verifyReads(shown []row, entered [2]int64) {
	for at, row := range shown {
		if at > 0 && row == shown[at-1] {
			r.broker.failf("%d was read twice", row.id)
		}
	}
	for _, row := range r.snapshot {
		slot := row.slot()
		if !r.slots[slot] || !r.queue.Misses(known(row)) {
			continue
		}
		later := row.id > r.fetch.After || (r.fetch.CatchesUp(slot) && row.id >= r.fetch.CatchUp.From)
		switch {
		case !later && !slices.Contains(r.late, row):
			r.broker.failf("%d is there, and was not read", row.id)
		case row.id < entered[slot]:
			r.broker.failf("%d has entered before %d", entered[slot], row.id)
		}
	}
}

// verify looks whether the Reader waits for what may yet be committed up to the cursor, and for nothing that was seen.
func (r *relay) verify(seen []int64) {
	cursor := r.reader.Cursor()
	for _, t := range r.db.txs {
		for _, row := range t.wrote {
			if row.id <= cursor && !r.reader.Expects(nowhere, row.id) {
				r.broker.failf("transaction %s may commit %d, and nobody waits for it", t.name, row.id)
			}
		}
	}
	for _, id := range seen {
		if r.reader.Expects(nowhere, id) {
			r.broker.failf("%d was seen, and is waited for", id)
		}
	}
	for _, row := range r.db.rows {
		if r.slots[row.slot()] && row.id <= cursor && r.queue.Misses(known(row)) && !r.reader.Expects(row.slot(), row.id) {
			r.broker.failf("%d was missed", row.id)
		}
	}
}

// publish gives the broker what may be published. What it refuses is tried again later, and what is behind that in its
// key after it.
func (r *relay) publish() {
	refused := map[string]bool{}
	for _, m := range r.queue.Claim(r.now, much, much) {
		at, _ := strconv.Atoi(m.UUID)
		row := r.db.written[at]
		switch {
		case refused[m.Key]:
			r.queue.Release(row.id)
		case r.refusals > 0:
			r.refusals--
			refused[m.Key] = true
			r.queue.Postpone(row.id, r.now+5)
		default:
			if r.history == r.db.history { // else it may have vanished, or come again
				r.broker.publish(row)
			}
			r.unmarked = append(r.unmarked, publication{row, r.history})
		}
	}
}

// mark deletes what was published, and publishes what has waited for that.
func (r *relay) mark() {
	for len(r.unmarked) > 0 {
		for _, p := range r.unmarked {
			r.db.delete(p.row)
			if p.history == r.history {
				r.queue.Done(p.id)
			}
			if p.history != r.db.history {
				delete(r.db.committed, p.n)
			}
		}
		r.unmarked = nil
		if r.publish(); r.keeps {
			return
		}
	}
}
