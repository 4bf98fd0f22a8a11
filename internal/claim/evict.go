package claim

import "hash/maphash"

// eviction makes room while the backlog of a paused topic fills the queue: later lists of the topic are dropped, and
// what is read of it from then on does not come in, nor what is behind that in its keys. All of it is read again from
// the lowest id that was dropped, when the topic works and what was kept of it has been published.
type eviction struct {
	// topics holds those that something was dropped of, with the number of their entries that were kept.
	topics map[string]int
	// keys holds the hashes of keys that something was dropped of: 8 bytes each instead of a list. Two keys with one
	// hash wait for each other, and no more.
	keys map[uint64]struct{}
	seed maphash.Seed
	from int64 // the lowest id that was dropped
}

// maxEvictedKeys bounds eviction.keys, as a multiple of the queue's capacity.
const maxEvictedKeys = 8

func newEviction() eviction {
	return eviction{topics: map[string]int{}, keys: map[uint64]struct{}{}, seed: maphash.MakeSeed()}
}

func (v *eviction) hash(slot int, key string) uint64 {
	return maphash.Comparable(v.seed, listID{slot, key})
}

func (v *eviction) drop(slot int, key string, id int64) {
	if key != "" {
		v.keys[v.hash(slot, key)] = struct{}{}
	}
	if v.from == 0 || id < v.from {
		v.from = id
	}
}

// drops tells whether r must stay out, and remembers that it did.
func (v *eviction) drops(r Row) bool {
	if len(v.topics) == 0 {
		return false
	}
	_, out := v.topics[r.Topic]
	if !out && r.Key != "" {
		_, out = v.keys[v.hash(r.Slot, r.Key)]
	}
	if out {
		v.drop(r.Slot, r.Key, r.ID)
	}
	return out
}

// isBeforeKnown tells whether r is late: others of its key, with higher ids, are here or about to be, and it takes its
// place before them.
func (q *Queue) isBeforeKnown(r Row) bool {
	if len(q.evicted.topics) == 0 || r.Key == "" {
		return false
	}
	l := q.lists[listID{r.Slot, r.Key}]
	return l != nil && (l.more > r.ID || (len(l.entries) > 0 && l.entries[len(l.entries)-1].id > r.ID))
}

// Misses tells whether a row that is there is neither known, nor kept out for a reason.
func (q *Queue) Misses(r Row) bool {
	_, known := q.entries[r.ID]
	_, settled := q.settled[r.ID]
	_, out := q.evicted.topics[r.Topic]
	_, behind := q.evicted.keys[q.evicted.hash(r.Slot, r.Key)]
	l := q.lists[listID{r.Slot, r.Key}]
	cut := l != nil && l.more != 0 && r.ID >= l.more
	return !known && !settled && !out && !behind && !cut
}

// evict drops the later half of what is parked for the topic that has most, and tells whether it found any.
func (q *Queue) evict() bool {
	var topic string
	var most *fifo
	for t, lists := range q.parked {
		if lists.n > 1 && (most == nil || lists.n > most.n) {
			topic, most = t, lists
		}
	}
	if most == nil || len(q.evicted.keys) >= maxEvictedKeys*q.capacity {
		return false
	}
	for range most.n / 2 {
		l := most.tail
		for _, e := range l.entries {
			q.evicted.drop(l.slot, l.key, e.id)
			q.load(e, nil)
			delete(q.entries, e.id)
			q.leaves(e)
		}
		if l.more != 0 { // what was cut is read again with the rest
			q.evicted.drop(l.slot, l.key, l.more)
			delete(q.truncated, l)
		}
		q.unplace(l)
		delete(q.lists, listID{l.slot, l.key})
	}
	kept := 0
	for _, e := range q.entries {
		if e.topic == topic {
			kept++
		}
	}
	q.evicted.topics[topic] = kept
	return true
}

// leaves counts an entry out.
func (q *Queue) leaves(e *entry) {
	if kept, evicted := q.evicted.topics[e.topic]; evicted {
		q.evicted.topics[e.topic] = kept - 1
	}
}

// Reread returns the id from which on everything must be read again, because what was kept of an evicted topic runs out
// while the topic works. From then on everything may come in.
func (q *Queue) Reread() (from int64, wanted bool) {
	for topic, kept := range q.evicted.topics {
		if kept < q.perKey && !q.isPaused(topic) {
			wanted = true
		}
	}
	if !wanted {
		return 0, false
	}
	from = q.evicted.from
	q.evicted = newEviction()
	return from, true
}
