package scan_test

import (
	"slices"
	"strconv"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/internal/scan"
)

// database is a simulated PostgreSQL: transactions that take ids from a sequence and row locks on keys, snapshots, and
// servers that crash or give way to one that is behind.
type database struct {
	next      int64          // of the sequence
	rows      []row          // committed and not deleted, ascending; a change makes another slice, so one is a snapshot
	deleted   []row          // a failover may bring them back
	written   []row          // all there ever were
	committed map[int]bool   // which of them must be published
	txs       []*transaction // that are running
	locks     [keys]*transaction

	begun    int // transactions since the start of the server
	prepared int // transactions ever
	epoch    int // changes with each start of the server, when names begin again
	history  int // changes when ids begin again, too
	durable  int64
}

type row struct {
	id  int64
	n   int // in database.written
	key int
	msg *outbox.Message
}

// keys are "a" to "h", in two slots by turns.
const keys = 8

func (r row) slot() int { return r.key % 2 }

type transaction struct {
	name     string
	holds    bool // it has taken an id
	prepared bool
	ended    bool
	wrote    []row
}

func newDatabase() *database {
	return &database{next: 1, committed: map[int]bool{}}
}

func (d *database) begin() *transaction {
	d.begun++
	t := &transaction{name: strconv.Itoa(d.begun)}
	d.txs = append(d.txs, t)
	return t
}

// lock takes the row lock of a key, or tells that somebody else has it.
func (d *database) lock(t *transaction, key int) bool {
	if holder := d.locks[key]; holder != nil && holder != t {
		return false
	}
	d.locks[key] = t
	return true
}

// publish takes an id; the row is visible after the commit.
func (d *database) publish(t *transaction, key int) {
	n := len(d.written)
	msg := &outbox.Message{ID: strconv.FormatInt(d.next, 10), UUID: strconv.Itoa(n), Topic: "t", Key: string(rune('a' + key))}
	d.written = append(d.written, row{d.next, n, key, msg})
	t.wrote = append(t.wrote, d.written[n])
	d.waste(t)
}

// waste takes an id in a savepoint that is rolled back.
func (d *database) waste(t *transaction) {
	t.holds = true
	d.next++
}

func (d *database) end(t *transaction, commit bool) {
	t.ended = true
	d.txs = slices.DeleteFunc(slices.Clone(d.txs), func(other *transaction) bool { return other == t })
	for key, holder := range d.locks {
		if holder == t {
			d.locks[key] = nil
		}
	}
	if commit {
		d.durable = d.next - 1
		d.insert(t.wrote)
		for _, r := range t.wrote {
			d.committed[r.n] = true
		}
	}
}

// prepare gives a transaction a name that no other ever has.
func (d *database) prepare(t *transaction) {
	d.prepared++
	t.prepared, t.name = true, "prepared "+strconv.Itoa(d.prepared)
	d.durable = d.next - 1
}

func byID(r row, id int64) int { return int(r.id - id) }

func (d *database) insert(rows []row) {
	d.rows = slices.Concat(d.rows, rows)
	slices.SortFunc(d.rows, func(a, b row) int { return byID(a, b.id) })
}

// delete is by id and UUID.
func (d *database) delete(r row) {
	if at := slices.Index(d.rows, r); at >= 0 {
		d.rows = slices.Concat(d.rows[:at], d.rows[at+1:])
		d.deleted = append(d.deleted, r)
	}
}

func (d *database) find(id int64) (r row, found bool) {
	at, found := slices.BinarySearchFunc(d.rows, id, byID)
	if !found {
		return row{}, false
	}
	return d.rows[at], true
}

// crash rolls back whoever has not prepared, and starts the server again, with next as the next id: what was taken since
// the log was last written may be given again.
func (d *database) crash(next int64) {
	for _, t := range d.txs {
		if !t.prepared {
			d.end(t, false)
		}
	}
	d.next = max(next, d.durable+1)
	d.begun = 0
	d.epoch++
}

// failOver goes on with a replica that has what was committed up to the id through, and was not told of the deletions from
// the id undeleted on.
func (d *database) failOver(through, undeleted int64) {
	beyond := func(r row) bool { return r.id > through }
	for _, t := range d.txs {
		t.prepared = t.prepared && !slices.ContainsFunc(t.wrote, beyond)
	}
	d.durable = through
	d.crash(through + 1)
	d.history++
	d.insert(slices.DeleteFunc(d.deleted, func(r row) bool { return r.id < undeleted }))
	d.rows, d.deleted = slices.DeleteFunc(d.rows, beyond), nil
	clear(d.committed)
	for _, r := range d.rows {
		d.committed[r.n] = true
	}
}

// holders are the transactions that hold the sequence.
func (d *database) holders() (list []scan.Holder) {
	for _, t := range d.txs {
		if t.holds {
			list = append(list, scan.Holder{ID: t.name, Prepared: t.prepared})
		}
	}
	return list
}
