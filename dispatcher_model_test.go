package outbox

import (
	"bytes"
	"cmp"
	"errors"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/sony/gobreaker/v2"
	"pgregory.net/rapid"

	"github.com/watermill-outbox/outbox/internal/draws"
)

// dispatcherHistory drives a dispatcher as the relay's loop, workers and marker do, one step at a time in any order,
// beside a model of what is true.
//
// Invariants, after every step:
//
//   - At most one message of a key is ready or being published.
//   - What is taken in leaves once: inFlight and hanging together are the messages taken in whose outcome or release the
//     store has not got, hanging has a bound of its own, stalled is of the calls reported as such, and all are zero at the end.
//   - Behind a call that hangs nothing waits, also after its lease was lost and taken again.
//   - First deliveries are in the order of each key, those of another instance included.
//   - What is marked as processed was delivered, and only what was committed is.
//   - A failure counts if another message of its topic, sent after this one's last attempt had ended, was acknowledged,
//     and only then. (A dispatcher may not know of attempts that others made.)
//   - While a topic is down, one probe is out at most.
type dispatcherHistory struct {
	d      *dispatcher
	cfg    Config
	store  *simulatedStore
	pauses bool // the store leaves out topics that are down
	terms  bool // it is a TermReporter
	all    []*simulatedRow
	step   int

	sent      []*brokerCall // by next, and not returned
	abandoned []*brokerCall // by a run that gave up waiting
	taken     map[*simulatedRow]int
	batch     *marks // that the marker has
	acks      []acknowledged
	out       map[string]bool // topics that fail
	heard     []Event         // in this step
	wrong     string
}

// brokerCall is a message that a worker has.
type brokerCall struct {
	it       *item
	row      *simulatedRow
	sent     time.Time
	begun    bool // its lease was there, and Publish was called
	answered bool // the loop has not heard yet
	err      error
	probe    bool // sent while its topic was down
	stalled  bool
}

type acknowledged struct {
	row  *simulatedRow
	sent time.Time
}

var errFails, errRefused = errors.New("fails"), errors.New("refused")

func newDispatcherHistory(t *rapid.T) *dispatcherHistory {
	h := &dispatcherHistory{cfg: DefaultConfig(), store: &simulatedStore{leased: true}, step: 1, out: map[string]bool{}}
	h.cfg.Concurrency = rapid.IntRange(1, 8).Draw(t, "concurrency")
	h.cfg.MaxInFlight = rapid.IntRange(1, 12).Draw(t, "max in flight")
	h.cfg.MaxRetries = rapid.IntRange(1, 4).Draw(t, "max retries")
	h.cfg.PublishTimeout = 2 * time.Second
	h.cfg.PermanentError = func(err error) bool { return errors.Is(err, errRefused) }
	h.pauses = rapid.Bool().Draw(t, "pauses")
	h.terms = rapid.Bool().Draw(t, "terms")
	h.start()
	return h
}

func (h *dispatcherHistory) start() {
	h.taken = map[*simulatedRow]int{}
	h.batch, h.sent, h.acks = nil, nil, nil
	for _, r := range h.all {
		r.failedHere = false
	}
	h.d = newDispatcher(&h.cfg, h.observe)
	h.d.pauses = h.pauses
}

func (h *dispatcherHistory) observe(event Event) {
	h.heard = append(h.heard, event)
	if e, stalled := event.(StalledEvent); stalled {
		for _, c := range h.sent { // by age
			if c.it.msg.ID == e.Message.ID && !c.answered && !c.stalled {
				c.stalled = true
				break
			}
		}
	}
}

// pick draws one of all for which the condition holds.
func pick[T any](t *rapid.T, all []T, is func(T) bool) T {
	var of []T
	for _, one := range all {
		if is(one) {
			of = append(of, one)
		}
	}
	if len(of) == 0 {
		t.Skip("there is none")
	}
	return rapid.SampledFrom(of).Draw(t, "which")
}

// begin takes ids. Their transactions may commit later than others that have begun after them.
func (h *dispatcherHistory) begin(t *rapid.T) {
	for range rapid.SampledFrom([]int{1, 1, 10}).Draw(t, "messages") {
		h.beginOne(t)
	}
}

func (h *dispatcherHistory) beginOne(t *rapid.T) {
	id := strconv.Itoa(len(h.all))
	r := &simulatedRow{begun: h.step, poison: rapid.IntRange(0, 4).Draw(t, "poison") == 4, msg: Message{
		ID: id, UUID: id, Payload: make([]byte, rapid.IntRange(0, 3).Draw(t, "size")),
		Key:   rapid.SampledFrom([]string{"", "a", "a", "b", "c"}).Draw(t, "key"),
		Topic: rapid.SampledFrom([]string{"t", "t", "u"}).Draw(t, "topic"),
	}}
	if rapid.IntRange(0, 19).Draw(t, "damaged") == 19 {
		r.msg.Status, r.msg.LastError = StatusFailed, "damaged"
	}
	if rapid.IntRange(0, 2).Draw(t, "commits later") < 2 {
		r.visible = h.step
	}
	h.all, h.store.rows = append(h.all, r), append(h.store.rows, r)
}

func (h *dispatcherHistory) commit(t *rapid.T) {
	pick(t, h.store.rows, func(r *simulatedRow) bool { return r.visible == 0 }).visible = h.step
}

// claim is the loop with a claim's answer.
func (h *dispatcherHistory) claim(t *rapid.T) {
	room := h.cfg.MaxInFlight - h.d.inFlight
	if room <= 0 {
		t.Skip("there is no room")
	}
	msgs := h.store.claim(rapid.IntRange(1, room).Draw(t, "limit"), time.Now())
	for _, m := range msgs {
		h.taken[h.row(m.ID)]++
	}
	term := 0
	if h.terms {
		term = h.store.generation
	}
	h.d.claimed(msgs, int64(term), time.Now())
}

// left is how many times a message has left the dispatcher without the store's knowledge.
func (h *dispatcherHistory) left(r *simulatedRow) int {
	n := 0
	for _, m := range []*marks{&h.d.pending, cmp.Or(h.batch, &marks{})} {
		for _, o := range m.outcomes {
			if h.row(o.ID) == r {
				n++
			}
		}
		for _, released := range m.released {
			if h.row(released) == r {
				n++
			}
		}
	}
	return n
}

// row returns a message by the ID of a claim of it.
func (h *dispatcherHistory) row(id string) *simulatedRow {
	n, err := strconv.Atoi(rowID(id))
	if err != nil {
		panic(err) // begin made it
	}
	return h.all[n]
}

// send is the loop with a worker that is free.
func (h *dispatcherHistory) send(t *rapid.T) {
	if h.d.workers() >= h.cfg.Concurrency {
		t.Skip("no worker is free")
	}
	down := map[string]bool{}
	for name, topic := range h.d.outages.topics {
		down[name] = topic.breaker.State() != gobreaker.StateClosed
	}
	it := h.d.next(time.Now())
	if it == nil {
		return
	}
	c := &brokerCall{it: it, row: h.row(it.msg.ID), sent: time.Now(), probe: down[it.msg.Topic]}
	for _, other := range h.sent {
		if c.probe && other.probe && !other.stalled && other.row.msg.Topic == c.row.msg.Topic {
			t.Fatalf("%s and %s go to a topic that is down", other.row.msg.ID, c.row.msg.ID)
		}
	}
	h.sent = append(h.sent, c)
}

// call is a worker that begins.
func (h *dispatcherHistory) call(t *rapid.T) {
	c := pick(t, slices.Concat(h.sent, h.abandoned), func(c *brokerCall) bool { return !c.begun && !c.answered })
	if c.begun = h.store.leased && c.row.claim == c.it.msg.ID; !c.begun {
		c.err = errLost
		h.answers(t, c)
	}
}

// answer is the broker's.
func (h *dispatcherHistory) answer(t *rapid.T) {
	c := pick(t, slices.Concat(h.sent, h.abandoned), func(c *brokerCall) bool { return c.begun && !c.answered })
	c.err = rapid.SampledFrom([]error{nil, nil, errFails, errFails, errRefused}).Draw(t, "error")
	h.answers(t, c)
}

func (h *dispatcherHistory) answers(t *rapid.T, c *brokerCall) {
	c.answered = true
	if c.err == nil && (h.out[c.row.msg.Topic] || c.row.poison) {
		c.err = errFails
	}
	c.it.phase.CompareAndSwap(phaseSent, phaseReturned)
	if c.err == nil {
		h.deliver(t, c.row)
	}
}

func (h *dispatcherHistory) deliver(t *rapid.T, r *simulatedRow) {
	if r.visible == 0 {
		t.Fatalf("%s is published, and not committed", r.msg.ID)
	}
	for _, other := range h.store.rows {
		if !r.delivered && r.msg.Key != "" && other.msg.Key == r.msg.Key && !other.delivered &&
			other.visible > 0 && other.visible < r.begun {
			t.Fatalf("%s is published before %s of the same key", r.msg.ID, other.msg.ID)
		}
	}
	r.delivered = true
}

// returns is the loop with a result.
func (h *dispatcherHistory) returns(t *rapid.T) {
	h.returned(t, pick(t, h.sent, func(c *brokerCall) bool { return c.answered }))
}

func (h *dispatcherHistory) returned(t *rapid.T, c *brokerCall) {
	r, now := c.row, time.Now()
	should := slices.ContainsFunc(h.acks, func(a acknowledged) bool {
		return a.row != r && a.row.msg.Topic == r.msg.Topic && !r.attempted.IsZero() && a.sent.After(r.attempted)
	})
	h.sent = slices.DeleteFunc(h.sent, func(other *brokerCall) bool { return other == c })
	h.heard = nil
	h.d.returned(c.it, c.err, now)
	counted, aside := false, false
	for _, event := range h.heard {
		switch e := event.(type) {
		case FailedEvent:
			counted = e.Counted
			if e.RetryAfter < 0 || e.RetryAfter > h.cfg.MaxRetryBackoff || (!e.Counted && e.RetryAfter > probeInterval) {
				t.Fatalf("%s waits for %v", r.msg.ID, e.RetryAfter)
			}
		case SetAsideEvent:
			aside = true
		}
	}
	switch retries := c.it.msg.Retries + 1; {
	case c.err == nil:
		h.acks = append(h.acks, acknowledged{r, c.sent})
		r.failedHere = false
		return
	case errors.Is(c.err, errLost):
		return
	case errors.Is(c.err, errRefused):
		if !aside {
			t.Fatalf("%s was refused for good, and is tried again", r.msg.ID)
		}
	case !should && (counted || aside):
		t.Fatalf("%s was not at fault", r.msg.ID)
	case should && r.failedHere && !counted && !aside:
		t.Fatalf("%s alone is at fault, and that is not counted", r.msg.ID)
	case aside != ((counted || aside) && retries >= h.cfg.MaxRetries):
		t.Fatalf("%s was set aside: %v, after %d of %d attempts", r.msg.ID, aside, retries, h.cfg.MaxRetries)
	}
	r.attempted, r.failedHere = now, !aside
}

// mark is the loop with the marker when that is free.
func (h *dispatcherHistory) mark(t *rapid.T) {
	if h.batch != nil || h.d.pending.empty() {
		t.Skip("nothing to mark")
	}
	m := h.d.takeMarks()
	h.batch = &m
}

// settle is the marker. Its statement may fail, or only its answer may.
func (h *dispatcherHistory) settle(t *rapid.T) {
	if h.batch == nil {
		t.Skip("nothing to settle")
	}
	what := rapid.SampledFrom([]string{"settled", "failed", "lost"}).Draw(t, "answer")
	if what != "failed" {
		h.store.settle(t, h.batch, time.Now())
	}
	if what == "settled" {
		h.marked(t)
	}
}

func (h *dispatcherHistory) marked(t *rapid.T) {
	for _, r := range h.all {
		if h.taken[r] == 0 {
			delete(h.taken, r)
		}
	}
	gone := slices.Clone(h.batch.released)
	for _, o := range h.batch.outcomes {
		gone = append(gone, o.ID)
	}
	for _, id := range gone {
		if h.taken[h.row(id)]--; h.taken[h.row(id)] < 0 {
			t.Fatalf("%s has left twice", id)
		}
	}
	h.d.marked(*h.batch)
	h.batch = nil
}

// time passes, and the loop looks at it.
func (h *dispatcherHistory) time(t *rapid.T) {
	time.Sleep(rapid.SampledFrom([]time.Duration{0, time.Millisecond, retryWait, probeInterval, 2 * time.Second}).
		Draw(t, "time"))
	h.tick()
}

func (h *dispatcherHistory) tick() {
	now := time.Now()
	h.d.tick(now)
	for _, c := range h.sent {
		if end := c.sent.Add(h.cfg.PublishTimeout); !c.answered && !c.stalled &&
			(!end.After(now) || h.d.nextTick().IsZero() || h.d.nextTick().After(end)) {
			h.wrong = "a call that hangs is not noticed in time: " + c.row.msg.ID
		}
	}
	h.d.outages.tick(time.Now())
	if h.d.outages.changed {
		h.d.outages.changed = false
		if h.pauses {
			h.store.paused = h.d.outages.paused(time.Now())
		}
	}
}

func (h *dispatcherHistory) outage(t *rapid.T) {
	topic := rapid.SampledFrom([]string{"t", "u"}).Draw(t, "topic")
	h.out[topic] = !h.out[topic]
}

// round is everything once, in the order in which it goes when nothing is slow but a call or two.
func (h *dispatcherHistory) round(t *rapid.T) {
	h.fill(t)
	h.flush(t, rapid.SampledFrom([]int{0, 0, 1, 2}).Draw(t, "slow"))
}

func (h *dispatcherHistory) fill(t *rapid.T) {
	h.tick()
	if h.d.inFlight < h.cfg.MaxInFlight {
		h.claim(t)
	}
	for h.d.ready.n > 0 && h.d.workers() < h.cfg.Concurrency {
		h.send(t)
	}
}

func (h *dispatcherHistory) lease(t *rapid.T) {
	if h.store.leased {
		h.store.end(true)
	} else if rapid.Bool().Draw(t, "comes back") {
		h.store.leased = true
	}
}

// other is another instance that has the lease, and publishes the front of a key.
func (h *dispatcherHistory) other(t *rapid.T) {
	if h.store.leased {
		t.Skip("it has no lease")
	}
	fronts := map[string]*simulatedRow{}
	r := pick(t, h.store.rows, func(r *simulatedRow) bool {
		if r.visible == 0 || (r.msg.Key != "" && fronts[r.msg.Key] != nil) {
			return false
		}
		if !r.delivered { // one that was delivered may be delivered again, or not if somebody knows
			fronts[r.msg.Key] = r
		}
		return true
	})
	switch rapid.SampledFrom([]string{"published", "marked", "failed"}).Draw(t, "outcome") {
	case "failed":
		r.msg.Retries++
		if r.attempted.IsZero() {
			r.attempted = time.Now()
		}
	case "marked":
		h.deliver(t, r)
		h.store.remove(r)
	default:
		h.deliver(t, r)
	}
}

// restart ends the run, in order or by giving up what is being published, and begins another.
func (h *dispatcherHistory) restart(t *rapid.T) {
	if rapid.IntRange(0, 3).Draw(t, "does") < 3 {
		return // a new dispatcher has forgotten what was interesting
	}
	h.fill(t)
	h.d.releaseWaiting(time.Now())
	if rapid.Bool().Draw(t, "a claim comes late") {
		h.claim(t)
		h.d.releaseWaiting(time.Now())
	}
	if rapid.Bool().Draw(t, "gives up") {
		h.abandoned = append(h.abandoned, h.sent...)
		if h.batch != nil {
			h.store.settle(t, h.batch, time.Now())
		}
	} else {
		h.flush(t, 0)
		if !h.d.idle() {
			t.Fatalf("%d messages are in flight after all calls have returned", h.d.inFlight+h.d.hanging)
		}
	}
	h.store.end(false)
	h.store.leased = true
	h.start()
}

// flush has all calls but the first few return, and the store hear of it.
func (h *dispatcherHistory) flush(t *rapid.T, few int) {
	for _, c := range slices.Clone(h.sent)[min(few, len(h.sent)):] {
		if !c.answered {
			if !c.begun && (!h.store.leased || c.row.claim != c.it.msg.ID) {
				c.err = errLost
			}
			h.answers(t, c)
		}
		h.returned(t, c)
	}
	for range 2 { // the one that is under way, and the next
		if m := h.d.takeMarks(); h.batch == nil {
			h.batch = &m
		} else {
			h.d.pending = m
		}
		h.store.settle(t, h.batch, time.Now())
		h.marked(t)
	}
}

func (h *dispatcherHistory) check(t *rapid.T) {
	h.step++
	if h.wrong != "" {
		t.Fatal(h.wrong)
	}
	inFlight, bytes, stalled, keys := 0, 0, 0, map[string]bool{}
	hanging, hangingBytes := 0, 0
	for r, n := range h.taken {
		inFlight += n
		bytes += n * r.msg.Size()
	}
	busy := func(it *item) {
		if it.msg.Key != "" && keys[it.msg.Key] {
			t.Fatalf("two messages of key %s are ready or being published", it.msg.Key)
		}
		keys[it.msg.Key] = true
	}
	for _, c := range h.sent {
		busy(c.it)
		if c.stalled {
			stalled++
			h.checkBehind(t, c)
		}
		if c.it.hangs {
			hanging++
			hangingBytes += c.it.size
		}
	}
	for i := range h.d.ready.n {
		busy(h.d.ready.items[(h.d.ready.begin+i)&(len(h.d.ready.items)-1)])
	}
	remembered := 0
	for _, topic := range h.d.outages.topics {
		remembered += len(topic.attempt)
	}
	if hanging > h.cfg.MaxInFlight || hangingBytes > h.cfg.MaxInFlightBytes+300 { // one message may exceed it
		t.Fatalf("%d messages of %d bytes hang beside the window", hanging, hangingBytes)
	}
	for _, count := range []struct {
		what       string
		is, should int
	}{
		{"inFlight", h.d.inFlight + h.d.hanging, inFlight},
		{"inFlightBytes", h.d.inFlightBytes + h.d.hangingBytes, bytes},
		{"hanging", h.d.hanging, hanging},
		{"hangingBytes", h.d.hangingBytes, hangingBytes},
		{"stalled", h.d.stalled, stalled},
		{"publishing", h.d.publishing.n, len(h.sent)},
		{"pending.items", h.d.pending.items, len(h.d.pending.outcomes) + len(h.d.pending.released)},
		{"failing", h.d.outages.failing, remembered},
	} {
		if count.is != count.should {
			t.Fatalf("%s is %d, should be %d", count.what, count.is, count.should)
		}
	}
	h.heard = nil
}

// checkBehind checks that a call that hangs is all that the dispatcher has of its key.
func (h *dispatcherHistory) checkBehind(t *rapid.T, c *brokerCall) {
	if c.row.msg.Key == "" {
		return
	}
	n := 0
	for r, taken := range h.taken {
		if r.msg.Key == c.row.msg.Key {
			n += taken - h.left(r)
		}
	}
	if n != 1 {
		t.Fatalf("behind %s, whose call hangs, %d messages wait", c.it.msg.ID, n-1)
	}
}

// finish publishes everything that is left, which must be possible from any state.
func (h *dispatcherHistory) finish(t *rapid.T) {
	for _, r := range h.all {
		r.visible, r.poison = cmp.Or(r.visible, h.step), false
	}
	h.store.leased = true
	clear(h.out)
	h.flush(t, 0)
	for range 3*len(h.all) + 10 {
		if len(h.store.rows) == 0 && h.d.idle() {
			break
		}
		time.Sleep(probeInterval + 2*time.Millisecond) // a probe is due
		h.fill(t)
		h.flush(t, 0)
		h.check(t)
	}
	h.check(t)
	if len(h.store.rows) > 0 || !h.d.idle() || h.d.inFlightBytes != 0 || len(h.d.keys) > 0 || h.d.ready.n > 0 {
		t.Fatalf("%d messages are stuck; in flight are %d with %d bytes, ready %d, of %d keys", len(h.store.rows),
			h.d.inFlight, h.d.inFlightBytes, h.d.ready.n, len(h.d.keys))
	}
}

// playDispatcherHistory draws a history. Whatever the broker, the store and the lease do, the invariants hold.
func playDispatcherHistory(t *rapid.T) {
	rapid.SyncTest(t, func(t *rapid.T) { // for the clock of the breakers
		h := newDispatcherHistory(t)
		t.Repeat(map[string]func(*rapid.T){
			"begin": h.begin, "commit": h.commit, "claim": h.claim, "send": h.send, "call": h.call, "answer": h.answer,
			"return": h.returns, "mark": h.mark, "settle": h.settle, "time": h.time, "lease": h.lease,
			"other": h.other, "restart": h.restart, "outage": h.outage, "round": h.round, "": h.check,
		})
		h.finish(t)
	})
}

func TestDispatcher_AgreesWithAModel(t *testing.T) {
	for range 8 { // of a hundred histories each
		rapid.Check(t, playDispatcherHistory)
	}
}

func FuzzDispatcher(f *testing.F) {
	for seed := range byte(255) { // a history is short, and what is wrong may take many
		f.Add([]byte{seed})
	}
	f.Add(bytes.Repeat([]byte{2}, 10_000)) // once it drew the same action without end
	play := rapid.MakeFuzz(playDispatcherHistory)
	f.Fuzz(func(t *testing.T, input []byte) { play(t, draws.From(input)) })
}
