package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/store/memory"
)

// world is what is true in a history of TestForwarder_AgreesWithAModel, whatever a Forwarder may believe: what was
// committed, what the broker has, and what may happen to each message there.
type world struct {
	store *memory.Store // the database, and an instance that never relays

	mu       sync.Mutex
	moment   int // counts whatever happens
	messages map[string]*worldMessage
	out      map[string]bool // topics that are down
	atBroker map[string]int  // calls by key
	wrong    string          // the first thing
	// disowned is set when somebody may publish what another has: a lease was lost, or a run gave up waiting.
	disowned bool
}

type worldMessage struct {
	id, key, topic string
	committed      bool
	due            time.Time // of a delayed one, by the database's clock
	before         []*worldMessage
	plan           []answer // of the broker, one after the other; the last for ever
	attempts       []*worldAttempt
	delivered      int
	kept           int // of those, how many were refused all the same
}

// answer is what comes of a Publish call.
type answer struct {
	after    time.Duration
	err      error
	panics   bool
	delivers bool // in spite of the error
}

type worldAttempt struct {
	by          *worldRun
	begun, done int // moments; done is 0 while it goes on
	err         error
	stalled     bool
}

var (
	errPoison  = errors.New("cannot be encoded")
	errTooLong = errors.New("message too large")
	errPanic   = errors.New("the publisher panicked: out of luck")
)

func newWorld(store *memory.Store) *world {
	return &world{store: store, messages: map[string]*worldMessage{}, out: map[string]bool{}, atBroker: map[string]int{}}
}

// now counts on. The caller holds mu.
func (w *world) now() int { w.moment++; return w.moment }

func (w *world) failf(format string, args ...any) {
	if w.wrong == "" {
		w.wrong = fmt.Sprintf(format, args...)
	}
}

// begin notes that Publish is about to be called for a message, in a transaction that has saved others before, and which
// ones of its key must be published first (P4).
func (w *world) begin(m *worldMessage, saved []*worldMessage) {
	databaseNow := w.store.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.messages[m.id] = m
	if m.key == "" {
		return
	}
	for _, other := range w.messages {
		committed := other.committed && !other.due.After(databaseNow)
		if other.key == m.key && other != m && other.delivered == 0 &&
			(committed || (slices.Contains(saved, other) && other.due.IsZero())) {
			m.before = append(m.before, other)
		}
	}
}

// commit is called right before the commit.
func (w *world) commit(saved []*worldMessage) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range saved {
		m.committed = true
	}
}

// worldRun is a run of a Forwarder: its broker's publisher, its observer, and the store that it relays from.
type worldRun struct {
	*memory.Store
	w   *world
	cfg outbox.Config

	claimFails, settleFails, answerLost bool

	// Guarded by w.mu, as the three above.
	claimed map[string]int // bytes, by row id
	bytes   int
	largest int            // of all that were claimed
	calls   map[string]int // by key
	running int            // calls that have not stalled
}

func (r *worldRun) Close() error { return nil }

func (r *worldRun) Publish(topic string, msgs ...*message.Message) error {
	m, a, answer := r.arrive(topic, msgs[0])
	if m == nil {
		return nil
	}
	time.Sleep(answer.after)
	err := r.leave(m, a, answer)
	if errors.Is(err, errPanic) {
		panic("out of luck")
	}
	return err
}

// arrive checks a call and notes it.
func (r *worldRun) arrive(topic string, msg *message.Message) (*worldMessage, *worldAttempt, answer) {
	w := r.w
	w.mu.Lock()
	defer w.mu.Unlock()
	m := w.messages[msg.UUID]
	if m == nil || !m.committed {
		w.failf("%s is published, and not committed", msg.UUID)
		return nil, nil, answer{}
	}
	if topic != m.topic || outbox.Key(msg) != m.key || msg.Metadata["id"] != m.id || !strings.HasPrefix(string(msg.Payload), m.id) {
		w.failf("%s was changed", m.id)
	}
	if m.due.After(w.store.Now()) {
		w.failf("%s is published before it is due", m.id)
	}
	a := &worldAttempt{by: r, begun: w.now()}
	m.attempts = append(m.attempts, a)
	if m.key != "" && (r.calls[m.key] > 0 || (w.atBroker[m.key] > 0 && !w.disowned)) {
		w.failf("two of key %s are published at once, one of them %s", m.key, m.id)
	}
	w.atBroker[m.key]++
	r.calls[m.key]++
	if r.running++; r.running > r.cfg.Concurrency {
		w.failf("%d calls run at once", r.running)
	}
	next := m.plan[0]
	if len(m.plan) > 1 {
		m.plan = m.plan[1:]
	}
	return m, a, next
}

// leave is the end of a call.
func (r *worldRun) leave(m *worldMessage, a *worldAttempt, ans answer) error {
	w := r.w
	w.mu.Lock()
	defer w.mu.Unlock()
	w.atBroker[m.key]--
	r.calls[m.key]--
	if !a.stalled {
		r.running--
	}
	a.done = w.now()
	switch a.err = ans.err; {
	case w.out[m.topic]:
		a.err = errDown
	case ans.panics:
		a.err = errPanic
	case ans.delivers:
		m.kept++
		w.deliver(m)
	case ans.err == nil:
		w.deliver(m)
	}
	return a.err
}

// deliver is the broker with a message that it keeps.
func (w *world) deliver(m *worldMessage) {
	if m.delivered++; m.delivered > 1 {
		return
	}
	for _, other := range m.before {
		if other.delivered == 0 && !w.isAside(other) {
			w.failf("%s is published before %s of key %s", m.id, other.id, m.key)
		}
	}
	m.before = nil
}

func (w *world) isAside(m *worldMessage) bool {
	msgs, err := w.store.ListFailed(context.Background(), "", 1<<20)
	return err == nil && slices.ContainsFunc(msgs, func(f outbox.Message) bool { return f.UUID == m.id })
}

// Observe checks that only what is at fault is blamed.
func (r *worldRun) Observe(_ context.Context, event outbox.Event) {
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	switch e := event.(type) {
	case outbox.FailedEvent:
		if e.Counted {
			r.blamed(&e.Message, e.Err)
		}
	case outbox.SetAsideEvent:
		retries, most := e.Message.Retries+1, r.cfg.MaxRetries // late marks of others may have counted on
		if (retries < most || (retries > most && !r.w.disowned)) && !errors.Is(e.Err, errTooLong) {
			r.w.failf("%s is set aside after %d attempts of %d", e.Message.UUID, retries, most)
		}
		r.blamed(&e.Message, e.Err)
	case outbox.StalledEvent:
		for _, a := range r.w.messages[e.Message.UUID].attempts {
			if a.by == r && a.done == 0 && !a.stalled {
				a.stalled = true
				r.running--
				break
			}
		}
	}
}

// blamed checks that another message of its topic, begun after the end of this one's last attempt but one, has been
// acknowledged (P6). A run knows of its own attempts only, and by the retries that there were others before.
func (r *worldRun) blamed(msg *outbox.Message, err error) {
	if errors.Is(err, errTooLong) {
		return
	}
	m := r.w.messages[msg.UUID]
	var own, all []int // when they ended
	for _, a := range m.attempts {
		if a.done > 0 && a.err != nil {
			all = append(all, a.done)
			if a.by == r {
				own = append(own, a.done)
			}
		}
	}
	slices.Sort(own)
	slices.Sort(all)
	since := all[0] // late attempts of others may have come in between
	switch {
	case r.w.disowned && len(own) > 1: // nobody hears how a call has ended whose lease was lost meanwhile
		since = own[0]
	case len(own) > 1:
		since = own[len(own)-2]
	case msg.Retries == 0 || len(all) < 2:
		r.w.failf("%s is blamed for its first attempt", m.id)
	case !r.w.disowned:
		since = all[len(all)-2]
	}
	for _, other := range r.w.messages {
		for _, a := range other.attempts {
			if other != m && other.topic == m.topic && a.done > 0 && a.err == nil && a.begun > since {
				return
			}
		}
	}
	r.w.failf("%s is blamed, and nothing of %s has got through since", m.id, m.topic)
}

// Claim, Settle and Release note what is claimed, and fail when they are told to.
func (r *worldRun) Claim(ctx context.Context, limit, maxBytes int) ([]outbox.Message, error) {
	r.w.mu.Lock()
	fails := r.claimFails
	r.w.mu.Unlock()
	if fails {
		return nil, errDown
	}
	msgs, err := r.Store.Claim(ctx, limit, maxBytes)
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	for i := range msgs {
		m := &msgs[i]
		r.largest = max(r.largest, m.Size())
		if _, known := r.claimed[m.ID]; !known {
			r.claimed[m.ID] = m.Size()
			r.bytes += m.Size()
		}
	}
	// Twice, for calls that hang.
	if len(r.claimed) > 2*r.cfg.MaxInFlight || (len(msgs) > 0 && r.bytes > 2*(r.cfg.MaxInFlightBytes+r.largest)) {
		r.w.failf("%d messages of %d bytes are in flight", len(r.claimed), r.bytes)
	}
	return msgs, err
}

func (r *worldRun) Settle(ctx context.Context, outcomes ...outbox.Outcome) error {
	// A store that is not sure of its commit keeps the claims, which this one cannot do for those that it puts off.
	putsOff := slices.ContainsFunc(outcomes, func(o outbox.Outcome) bool { return o.Status == outbox.StatusPending })
	r.w.mu.Lock()
	fails, lost := r.settleFails, r.answerLost && !putsOff
	r.answerLost = r.answerLost && !lost
	r.w.mu.Unlock()
	if fails {
		return errDown
	}
	err := r.Store.Settle(ctx, outcomes...)
	if lost {
		return errDown
	}
	for _, o := range outcomes {
		r.unclaim(o.ID)
	}
	return err
}

func (r *worldRun) Release(ctx context.Context, ids ...string) error {
	for _, id := range ids {
		r.unclaim(id)
	}
	if len(ids) == 0 { // the end of the run
		r.w.mu.Lock()
		r.w.disowned = r.w.disowned || len(r.claimed) > 0
		r.w.mu.Unlock()
	}
	return r.Store.Release(ctx, ids...)
}

func (r *worldRun) unclaim(id string) {
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	r.bytes -= r.claimed[id]
	delete(r.claimed, id)
}
