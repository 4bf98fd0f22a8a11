package outbox

import (
	"errors"
	"sync/atomic"
	"time"
)

// dispatcher decides what is published when. It has no goroutine or channel: the relay's loop is the only one to call
// it, and tells it the time. (The breakers of gobreaker have a clock of their own.)
//
// Invariants:
//
//   - Of each key at most one message is ready or being published: the front of its queue.
//   - When that one fails or is set aside, those behind it go back to the store, which gives them out again when the
//     outcome has been written. So do they when it is done and they were claimed in a later term, after its claim was lost.
//   - Behind a call that hangs nothing waits.
//   - Every claimed message leaves exactly once: with an outcome, with a release, or because its lease was lost.
type dispatcher struct {
	cfg     *Config
	observe func(Event)
	outages *outages
	pauses  bool // the store leaves topics out that are down

	claims int // taken in so far

	keys  map[string]*keyQueue
	spare []*keyQueue // to be used again: most keys come and go with one message
	ready ring

	publishing running // sent and not returned, by when they were sent
	stalled    int     // of those, the ones that do not count as workers any more

	// Claimed and not settled or released yet, except for calls that hang.
	inFlight, inFlightBytes int
	// Of calls that hang. These do not stop others: only when they are as many again as inFlight may be, or as large, those
	// beyond that count as inFlight, and no probes go out that might hang, too.
	hanging, hangingBytes int

	stopping     bool // nothing more is sent
	pending      marks
	pendingSince time.Time
	published    int
	lastErr      error // of the latest failure, for Drain
	failures     int
}

// item is a claimed message. The dispatcher owns it, except for what msg points to while a worker publishes it.
type item struct {
	msg       *Message
	size      int
	term      int64 // see TermReporter
	claimedAt time.Time
	startedAt time.Time
	probe     func(error) // ends the topic's probe that this is, if it is one
	// deferred is set when a probe was to be found and this message had failed before: others go first.
	deferred   bool
	hangs      bool // counted as hanging
	phase      atomic.Int32
	prev, next *item // in running
	queue      *keyQueue
	behind     *item // in queue
}

// A Publish call either returns or stalls first; whoever changes the phase first, the worker or the dispatcher, decides.
const (
	phaseSent int32 = iota
	phaseReturned
	phaseStalled
)

// keyQueue holds the claimed messages of a key, ascending. Its front is ready or being published.
type keyQueue struct {
	key         string
	front, last *item
	heldBack    int // which of all claims was the last to be held back behind a call that hangs
}

// marks is what the store is to be told: outcomes, and claims to give back.
type marks struct {
	outcomes []Outcome
	sizes    []int // of their messages
	released []string
	// What that frees.
	items, bytes int
	// late is set where the store was told later than it was to be.
	late bool
}

func (m *marks) empty() bool { return m.items == 0 }

func newDispatcher(cfg *Config, observe func(Event)) *dispatcher {
	return &dispatcher{cfg: cfg, observe: observe, outages: newOutages(observe), keys: map[string]*keyQueue{}}
}

// claimed takes messages in.
func (d *dispatcher) claimed(msgs []Message, term int64, now time.Time) {
	d.claims++
	items := make([]item, len(msgs))
	for i := range msgs {
		it := &items[i]
		it.msg, it.size, it.term, it.claimedAt = &msgs[i], msgs[i].Size(), term, now
		d.inFlight++
		d.inFlightBytes += it.size
		d.enqueue(it, now)
	}
}

// enqueue puts a message behind those of its key. The store gives out a key that is here already only if the lease was
// lost and taken again meanwhile, and begins with the first message that is not done: as a rule the one that is here.
func (d *dispatcher) enqueue(it *item, now time.Time) {
	if it.msg.Key == "" {
		d.ready.push(it)
		return
	}
	q := d.keys[it.msg.Key]
	switch {
	case q == nil:
		q = d.newQueue(it.msg.Key)
		it.queue, q.front, q.last = q, it, it
		d.ready.push(it)
	case q.front.phase.Load() == phaseStalled:
		d.holdBack(q, it, now)
	default:
		it.queue, q.last.behind, q.last = q, it, it
	}
}

// holdBack gives a message back whose key has a call that hangs: nobody knows for how long, and it would fill the window.
// The first of them waits in the store, which would otherwise give them out again at once. When the call has been
// successful, its outcome ends that message under any ID, and the others are free.
func (d *dispatcher) holdBack(q *keyQueue, it *item, now time.Time) {
	if q.heldBack == d.claims {
		d.release(it, now)
		return
	}
	q.heldBack = d.claims
	d.postpone(it, d.cfg.PublishTimeout, now)
}

func (d *dispatcher) newQueue(key string) *keyQueue {
	var q *keyQueue
	if n := len(d.spare); n > 0 {
		q, d.spare = d.spare[n-1], d.spare[:n-1]
	} else {
		q = &keyQueue{}
	}
	q.key = key
	d.keys[key] = q
	return q
}

// leave takes the front out of its queue, if it has one.
func (d *dispatcher) leave(it *item) {
	q, behind := it.queue, it.behind
	if q == nil {
		return
	}
	it.queue, it.behind = nil, nil
	if q.front = behind; behind == nil {
		delete(d.keys, q.key)
		*q = keyQueue{}
		d.spare = append(d.spare, q)
	}
}

// next returns the next message to publish, or nil if none may be, and counts it as being published.
func (d *dispatcher) next(now time.Time) *item {
	for {
		it := d.ready.pop()
		switch {
		case it == nil:
			return nil
		case it.msg.Status == StatusFailed: // it cannot be decoded
			d.lastErr, d.failures = errors.New(it.msg.LastError), d.failures+1
			d.setAside(it, d.lastErr, now)
		case !it.deferred && d.outages.prefersOthers(it):
			it.deferred = true
			d.ready.push(it)
		case !d.outages.admits(it, now):
			d.putOff(it, now)
		default:
			it.startedAt = now
			d.publishing.push(it)
			return it
		}
	}
}

// workers is how many Publish calls count as running.
func (d *dispatcher) workers() int { return d.publishing.n - d.stalled }

// returned takes the result of a Publish call, or errLost if it was not made because the lease was gone.
func (d *dispatcher) returned(it *item, err error, now time.Time) {
	d.publishing.remove(it)
	if it.phase.Load() == phaseStalled {
		d.stalled--
	}
	if it.hangs {
		d.countHanging(it, -1)
	}
	switch err {
	case nil:
		d.published++
		d.outages.succeeded(it, now)
		d.settle(it, Outcome{ID: it.msg.ID, Status: StatusProcessed, Archive: d.cfg.Retention > 0}, now)
		d.advance(it, now)
	case errLost: //nolint:errorlint // nobody wraps it, and an Is method of the publisher's error might panic
		d.lost(it, now)
	default:
		d.failed(it, err, now)
	}
}

// countHanging moves an item from the window to the calls that hang, or with -1 back.
func (d *dispatcher) countHanging(it *item, n int) {
	it.hangs = n > 0
	d.inFlight, d.inFlightBytes = d.inFlight-n, d.inFlightBytes-n*it.size
	d.hanging, d.hangingBytes = d.hanging+n, d.hangingBytes+n*it.size
	full := d.hanging >= d.cfg.MaxInFlight || d.hangingBytes >= d.cfg.MaxInFlightBytes
	if full != d.outages.noProbes {
		d.outages.noProbes, d.outages.changed = full, true
	}
}

// errLost is the result of a message whose lease had ended before it could be published.
var errLost = errors.New("the lease was lost")

// lost forgets a message whose claim is gone, and those behind it in its key with it: even if the lease is back
// already, they must not go before the message that the store is about to give out again.
func (d *dispatcher) lost(it *item, now time.Time) {
	d.outages.dropped(it, now)
	d.keepInStore(it, now) // it may be claimed anew, or kept there for a late mark
}

func (d *dispatcher) failed(it *item, err error, now time.Time) {
	d.lastErr, d.failures = err, d.failures+1
	if d.cfg.PermanentError(err) {
		d.outages.answered(it, now)
		d.setAside(it, err, now)
		return
	}
	counts, free, outage := d.outages.failed(it, err, now)
	retries := it.msg.Retries + 1
	switch {
	case counts && retries >= d.cfg.MaxRetries:
		d.setAside(it, err, now)
	case counts:
		d.retry(it, err, true, d.cfg.RetryDelay(retries), now)
	case outage:
		d.retry(it, err, false, min(d.cfg.MaxRetryBackoff, probeInterval), now)
	default:
		d.retry(it, err, false, fullJitter(d.cfg.RetryBackoff, min(d.cfg.MaxRetryBackoff, probeInterval), free), now)
	}
}

func (d *dispatcher) retry(it *item, err error, counted bool, after time.Duration, now time.Time) {
	o := Outcome{ID: it.msg.ID, Status: StatusPending, RetryAfter: after}
	if counted {
		o.Err = err
	}
	d.observe(FailedEvent{Message: *it.msg, Err: err, Counted: counted, RetryAfter: after})
	d.settle(it, o, now)
	d.releaseKey(it, after, now)
}

func (d *dispatcher) setAside(it *item, err error, now time.Time) {
	d.outages.settled(it)
	d.observe(SetAsideEvent{Message: *it.msg, Err: err})
	d.settle(it, Outcome{ID: it.msg.ID, Status: StatusFailed, Err: err}, now)
	d.releaseKey(it, 0, now)
}

// putOff has a message whose topic is down wait for the next probe.
func (d *dispatcher) putOff(it *item, now time.Time) {
	if d.pauses {
		d.keepInStore(it, now)
		return
	}
	// The store would give it out again at once.
	wait := d.outages.untilProbe(it.msg.Topic, now)
	d.postpone(it, wait, now)
	d.releaseKey(it, wait, now)
}

// keepInStore gives a message back, with all behind it in its key.
func (d *dispatcher) keepInStore(it *item, now time.Time) {
	d.release(it, now)
	d.releaseKey(it, 0, now)
}

// advance lets the message behind it go. One of a later term may be the same message: the store has to know first that it
// is done.
func (d *dispatcher) advance(it *item, now time.Time) {
	switch {
	case it.queue == nil || it.behind == nil:
		d.leave(it)
	case it.behind.term == it.term:
		behind := it.behind
		d.leave(it)
		d.ready.push(behind)
	default:
		d.releaseKey(it, 0, now)
	}
}

// releaseKey takes it out of its key, and gives all messages behind it back to the store; see releaseBehind.
func (d *dispatcher) releaseKey(it *item, wait time.Duration, now time.Time) {
	d.releaseBehind(it, wait, now)
	d.leave(it)
}

// releaseWaiting gives back everything that is not being published. From then on nothing is to be sent.
func (d *dispatcher) releaseWaiting(now time.Time) {
	d.stopping = true
	for it := d.ready.pop(); it != nil; it = d.ready.pop() {
		d.keepInStore(it, now)
	}
	for it := d.publishing.head; it != nil; it = it.next {
		d.releaseBehind(it, 0, now)
	}
}

// releaseBehind gives back what waits behind a message. What was claimed in a later term, after its claim was lost, begins
// as a rule with the message itself, which is not released but has an outcome, too: it waits as long as the lost claim's
// outcome says, and is not free before the store knows that one.
func (d *dispatcher) releaseBehind(it *item, wait time.Duration, now time.Time) {
	if it.queue == nil {
		return
	}
	latest := it.queue.last.term
	lost := latest != it.term
	for behind := it.behind; behind != nil; {
		next := behind.behind
		behind.queue, behind.behind = nil, nil
		if lost && behind.term == latest {
			lost = false
			d.postpone(behind, wait, now)
		} else {
			d.release(behind, now)
		}
		behind = next
	}
	it.behind, it.queue.last = nil, it
}

// postpone has the store give a message out again after a while. Nothing is counted.
func (d *dispatcher) postpone(it *item, wait time.Duration, now time.Time) {
	d.settle(it, Outcome{ID: it.msg.ID, Status: StatusPending, RetryAfter: wait}, now)
}

func (d *dispatcher) settle(it *item, o Outcome, now time.Time) {
	d.mark(it, now)
	d.pending.outcomes = append(d.pending.outcomes, o)
	d.pending.sizes = append(d.pending.sizes, it.size)
}

func (d *dispatcher) release(it *item, now time.Time) {
	d.mark(it, now)
	d.pending.released = append(d.pending.released, it.msg.ID)
}

func (d *dispatcher) mark(it *item, now time.Time) {
	if d.pending.empty() {
		d.pendingSince = now
	}
	d.pending.items++
	d.pending.bytes += it.size
	it.msg.Payload, it.msg.Headers = nil, nil // its neighbours in the batch may keep it in memory for long
}

// takeMarks returns what the store is to be told, and expects marked for it.
func (d *dispatcher) takeMarks() marks {
	m := d.pending
	n := len(m.outcomes) // the next batch may be about as large
	d.pending = marks{outcomes: make([]Outcome, 0, n), sizes: make([]int, 0, n)}
	return m
}

// marked notes that the store knows.
func (d *dispatcher) marked(m marks) {
	d.inFlight -= m.items
	d.inFlightBytes -= m.bytes
}

// tick notices calls that have not returned in time. Their keys' other messages go back, so that hung calls do not fill
// the window.
func (d *dispatcher) tick(now time.Time) {
	for it := d.publishing.unstalled; it != nil && now.Sub(it.startedAt) >= d.cfg.PublishTimeout; it = it.next {
		if it.phase.CompareAndSwap(phaseSent, phaseStalled) {
			d.stalled++
			if !d.outages.noProbes {
				d.countHanging(it, 1)
			}
			d.releaseBehind(it, d.cfg.PublishTimeout, now)
			d.outages.stalled(it, now)
			msg := *it.msg
			msg.Payload, msg.Headers = nil, nil // the publisher may be writing to them
			d.observe(StalledEvent{Message: msg, Duration: now.Sub(it.startedAt)})
		}
		d.publishing.unstalled = it.next
	}
}

// nextTick is when tick has something to do, the zero time if nothing.
func (d *dispatcher) nextTick() time.Time {
	if it := d.publishing.unstalled; it != nil {
		return it.startedAt.Add(d.cfg.PublishTimeout)
	}
	return time.Time{}
}

// running is a list of messages, oldest first. unstalled is the first that tick has not dealt with.
type running struct {
	head, tail, unstalled *item
	n                     int
}

func (r *running) push(it *item) {
	it.prev, it.next = r.tail, nil
	if r.tail != nil {
		r.tail.next = it
	} else {
		r.head = it
	}
	r.tail = it
	if r.unstalled == nil {
		r.unstalled = it
	}
	r.n++
}

func (r *running) remove(it *item) {
	if r.unstalled == it {
		r.unstalled = it.next
	}
	if it.prev != nil {
		it.prev.next = it.next
	} else {
		r.head = it.next
	}
	if it.next != nil {
		it.next.prev = it.prev
	} else {
		r.tail = it.prev
	}
	it.prev, it.next = nil, nil
	r.n--
}

// ring is a queue that reuses its memory.
type ring struct {
	items []*item // its length is a power of two
	begin int
	n     int
}

func (r *ring) push(it *item) {
	if r.n == len(r.items) {
		grown := make([]*item, max(16, 2*len(r.items)))
		k := copy(grown, r.items[r.begin:])
		copy(grown[k:], r.items[:r.begin])
		r.items, r.begin = grown, 0
	}
	r.items[(r.begin+r.n)&(len(r.items)-1)] = it
	r.n++
}

func (r *ring) pop() *item {
	if r.n == 0 {
		return nil
	}
	it := r.items[r.begin]
	r.items[r.begin] = nil
	r.begin = (r.begin + 1) & (len(r.items) - 1)
	r.n--
	return it
}

// saturated tells that as much is ready as there are workers.
func (d *dispatcher) saturated() bool { return d.ready.n >= d.cfg.Concurrency }

// idle tells that everything claimed has been settled and that the store knows.
func (d *dispatcher) idle() bool { return d.inFlight+d.hanging == 0 }
