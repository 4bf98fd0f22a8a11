package measure

import (
	"slices"
	"sync"
	"time"
)

// Deliveries matches messages that are committed with those that come to a topic, while both goes on. Messages have
// numbers, each commits once, and many goroutines may tell at once. A message may be read from the topic before its
// Commit has returned.
type Deliveries struct {
	mu        sync.Mutex
	committed map[int]time.Time // and not written yet
	written   map[int]time.Time // and not known to be committed yet
	seen      map[int]uint64    // whether each was written, 64 to a word: hours of messages are a megabyte
	window    Window            // since the last Next
}

// Window is what has happened for a while, and how it stood at the end.
type Window struct {
	Committed  int
	Written    int // for the first time
	Duplicates int
	Latencies  []time.Duration // from commit to written, below zero where the broker was first

	Backlog int           // committed and not written
	Oldest  time.Duration // since the first of those was committed
}

// NewDeliveries has nothing committed and nothing written.
func NewDeliveries() *Deliveries {
	return &Deliveries{committed: map[int]time.Time{}, written: map[int]time.Time{}, seen: map[int]uint64{}}
}

// Committed tells that the commit of message n has returned.
func (d *Deliveries) Committed(n int, at time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.window.Committed++
	if written, ok := d.written[n]; ok {
		delete(d.written, n)
		d.window.Latencies = append(d.window.Latencies, written.Sub(at))
		return
	}
	d.committed[n] = at
}

// Written tells that the topic has message n.
func (d *Deliveries) Written(n int, at time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	const word = 64
	if d.seen[n/word]&(1<<(n%word)) != 0 {
		d.window.Duplicates++
		return
	}
	d.seen[n/word] |= 1 << (n % word)
	d.window.Written++
	if committed, ok := d.committed[n]; ok {
		delete(d.committed, n)
		d.window.Latencies = append(d.window.Latencies, at.Sub(committed))
		return
	}
	d.written[n] = at
}

// Next returns the window that ends now and begins the next.
func (d *Deliveries) Next(now time.Time) Window {
	d.mu.Lock()
	defer d.mu.Unlock()
	w := d.window
	w.Backlog = len(d.committed)
	for _, at := range d.committed {
		w.Oldest = max(w.Oldest, now.Sub(at))
	}
	d.window = Window{}
	return w
}

// Unwritten returns which messages are committed and not in the topic, in order.
func (d *Deliveries) Unwritten() []int { return d.unmatched(d.committed) }

// Uncommitted returns which messages are in the topic although no Commit of theirs has returned, in order.
func (d *Deliveries) Uncommitted() []int { return d.unmatched(d.written) }

func (d *Deliveries) unmatched(of map[int]time.Time) []int {
	d.mu.Lock()
	defer d.mu.Unlock()
	numbers := make([]int, 0, len(of))
	for n := range of {
		numbers = append(numbers, n)
	}
	slices.Sort(numbers)
	return numbers
}
