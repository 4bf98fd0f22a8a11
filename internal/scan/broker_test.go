package scan_test

import "fmt"

// broker has what was published, and the first thing that was wrong, with it or with a relay.
type broker struct {
	seen  map[int]bool // true if it may come again, since its slot was lost before it was marked
	first [keys]int64  // the last id that has come for the first time
	last  [keys]int64  // the last id that has come since the slot was acquired
	err   error
}

func newBroker() *broker { return &broker{seen: map[int]bool{}} }

// reset is for ids that begin again.
func (b *broker) reset() { *b = broker{seen: map[int]bool{}, err: b.err} }

func (b *broker) failf(format string, args ...any) {
	if b.err == nil {
		b.err = fmt.Errorf(format, args...)
	}
}

func (b *broker) publish(r row) {
	key := r.key
	again, seen := b.seen[r.n]
	switch {
	case seen && !again:
		b.failf("%d was published twice", r.id)
	case r.id < b.last[key]:
		b.failf("%d was published after %d of the same key", r.id, b.last[key])
	case !seen && r.id < b.first[key]:
		b.failf("%d was published, and %d of the same key had been before", r.id, b.first[key])
	}
	b.seen[r.n] = false
	b.last[key] = r.id
	if !seen {
		b.first[key] = r.id
	}
}

// lose is for a slot that was lost before what was published of it was marked.
func (b *broker) lose(slot int, unmarked []publication) {
	for _, p := range unmarked {
		if _, seen := b.seen[p.n]; seen && p.slot() == slot {
			b.seen[p.n] = true
		}
	}
	for key := range keys {
		if (row{key: key}).slot() == slot {
			b.last[key] = 0
		}
	}
}

// check tells what was wrong, or lost.
func (b *broker) check(d *database) error {
	for n := range d.committed {
		if _, seen := b.seen[n]; !seen {
			b.failf("%d was lost", d.written[n].id)
		}
	}
	return b.err
}
