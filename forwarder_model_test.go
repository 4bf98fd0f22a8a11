package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/components/delay"
	"github.com/ThreeDotsLabs/watermill/message"
	"pgregory.net/rapid"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/store/memory"
)

// forwarderHistory is publishers, databases' faults, brokers' faults and one or two relay instances in a bubble of fake
// time.
//
// Invariants, of which world checks most when they could break:
//
//   - P2: at the end, all that was committed is published or set aside.
//   - P3: what was not committed is never published.
//   - P4: first deliveries are in the order of their key, whoever makes them.
//   - P6: nobody is blamed for an outage: an attempt counts if another message of the topic has got through since the
//     last one. What can never be published is set aside with its error. What is in flight is bounded, in messages,
//     bytes and calls.
//   - Nothing is published twice, unless a lease was lost, a run gave up waiting, or the broker kept what it refused.
//   - A key has one message at the broker at a time, with the same exceptions, and never two of one run.
type forwarderHistory struct {
	w      *world
	relays []*modelRelay
	txs    []*modelTx
	count  int
	lossy  bool // leases may get lost
	opts   []outbox.Option
}

// modelRelay is an instance, and its run if it has one.
type modelRelay struct {
	store *memory.Store
	run   *worldRun
	f     *outbox.Forwarder
	ended chan error
}

type modelTx struct {
	tx    *memory.Tx
	saved []*worldMessage
}

const leaseTTL = 10 * time.Second

func newForwarderHistory(t *rapid.T) *forwarderHistory {
	store, err := memory.New(memory.WithSlots(rapid.SampledFrom([]int{1, 4}).Draw(t, "slots")), memory.WithLeaseTTL(leaseTTL))
	if err != nil {
		t.Fatal(err)
	}
	h := &forwarderHistory{w: newWorld(store), lossy: rapid.Bool().Draw(t, "lossy")}
	h.opts = []outbox.Option{
		outbox.WithLogger(watermill.NopLogger{}),
		outbox.WithConcurrency(rapid.IntRange(1, 8).Draw(t, "concurrency")),
		outbox.WithMaxInFlight(rapid.SampledFrom([]int{1, 5, 1000}).Draw(t, "max in flight")),
		outbox.WithMaxInFlightBytes(rapid.SampledFrom([]int{1 << 10, 1 << 20}).Draw(t, "max bytes")),
		outbox.WithBatchSize(rapid.SampledFrom([]int{1, 3, 1000}).Draw(t, "batch")),
		outbox.WithMaxRetries(rapid.IntRange(1, 3).Draw(t, "max retries")),
		outbox.WithRetryBackoff(100*time.Millisecond, time.Second),
		outbox.WithPublishTimeout(5 * time.Second),
		outbox.WithPermanentError(func(err error) bool { return errors.Is(err, errTooLong) }),
		outbox.WithCloseTimeout(rapid.SampledFrom([]time.Duration{time.Second, time.Minute}).Draw(t, "close timeout")),
	}
	for range rapid.IntRange(1, 2).Draw(t, "instances") {
		r := &modelRelay{store: store.NewInstance()}
		h.relays = append(h.relays, r)
		h.start(t, r)
	}
	t.Cleanup(func() { // also of a history that has failed
		for _, r := range h.relays {
			h.stop(r)
			if err := r.store.Close(); err != nil {
				t.Error(err)
			}
		}
		time.Sleep(time.Minute) // calls that were given up return
	})
	return h
}

func (h *forwarderHistory) start(t *rapid.T, r *modelRelay) {
	r.run = &worldRun{Store: r.store, w: h.w, claimed: map[string]int{}, calls: map[string]int{}}
	observe := outbox.OptionFunc(func(c *outbox.Config) { c.Observer, r.run.cfg = r.run, *c })
	f, err := outbox.NewForwarder(r.run, r.run, append(h.opts, observe)...)
	if err != nil {
		t.Fatal(err)
	}
	r.f, r.ended = f, make(chan error, 1)
	go func() { r.ended <- f.Run(context.Background()) }()
}

func (h *forwarderHistory) stop(r *modelRelay) {
	if r.run == nil {
		return
	}
	closed, ended := r.f.Close(), <-r.ended
	r.run = nil
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	for _, err := range []error{closed, ended} {
		if err != nil && !errors.Is(err, outbox.ErrCloseTimeout) {
			h.w.failf("a run has ended with %v", err)
		}
	}
}

// plans are what the broker may answer; most messages have nothing special.
var plans = [][]answer{
	{{}},
	{{}},
	{{after: 20 * time.Millisecond}},
	{{after: time.Second}},
	{{err: errDown}, {}},
	{{err: errDown}, {after: time.Second, err: errDown}, {}},
	{{err: errDown, delivers: true}, {}},
	{{err: errPoison}},
	{{err: errTooLong}},
	{{panics: true}, {}},
	{{panics: true}},
	{{after: 8 * time.Second}, {}},
	{{after: 8 * time.Second, err: errDown}, {}},
	{{after: 15 * time.Second, delivers: true, err: errDown}, {}},
}

// publish saves messages in a transaction that is open, in a new one, or in one of its own that commits at once.
func (h *forwarderHistory) publish(t *rapid.T) {
	which := rapid.IntRange(0, 4).Draw(t, "transaction")
	var tx *modelTx
	switch {
	case which < len(h.txs):
		tx = h.txs[which]
	default:
		tx = &modelTx{tx: h.w.store.Begin()}
		if which < 3 {
			h.txs = append(h.txs, tx)
		}
	}
	topic := rapid.SampledFrom([]string{"t", "t", "u"}).Draw(t, "topic")
	for range rapid.SampledFrom([]int{1, 2, 10}).Draw(t, "messages") {
		h.save(t, tx, topic)
	}
	if which >= 3 && which >= len(h.txs) {
		h.end(t, tx, true)
	}
}

func (h *forwarderHistory) save(t *rapid.T, tx *modelTx, topic string) {
	h.count++
	m := &worldMessage{id: fmt.Sprint(h.count), topic: topic, key: rapid.SampledFrom([]string{"", "a", "b", "c", "d"}).Draw(t, "key")}
	m.plan = rapid.SampledFrom(plans).Draw(t, "plan")
	msg := message.NewMessage(m.id, []byte(m.id+strings.Repeat(".", rapid.SampledFrom([]int{0, 0, 400}).Draw(t, "size"))))
	outbox.SetKey(msg, m.key)
	msg.Metadata.Set("id", m.id)
	if d := rapid.SampledFrom([]time.Duration{0, 0, 0, 2 * time.Second, time.Minute}).Draw(t, "delay"); d > 0 {
		m.due = time.Now().Add(d)
		delay.Message(msg, delay.For(d))
	}
	h.w.begin(m, tx.saved)
	if err := h.w.store.Publisher(tx.tx).Publish(topic, msg); err != nil {
		t.Fatal(err)
	}
	tx.saved = append(tx.saved, m)
}

func (h *forwarderHistory) end(t *rapid.T, tx *modelTx, commit bool) {
	end := tx.tx.Rollback
	if commit {
		h.w.commit(tx.saved)
		end = tx.tx.Commit
	}
	if err := end(); err != nil {
		t.Fatal(err)
	}
}

// endOne ends any of the open transactions: they commit in another order than their ids are in.
func (h *forwarderHistory) endOne(t *rapid.T) {
	if len(h.txs) == 0 {
		t.Skip("there is none")
	}
	i := rapid.IntRange(0, len(h.txs)-1).Draw(t, "transaction")
	tx := h.txs[i]
	h.txs = append(h.txs[:i], h.txs[i+1:]...)
	h.end(t, tx, rapid.IntRange(0, 3).Draw(t, "rolls back") < 3)
}

func (h *forwarderHistory) time(t *rapid.T) {
	time.Sleep(rapid.SampledFrom([]time.Duration{time.Millisecond, 50 * time.Millisecond, time.Second, 10 * time.Second, time.Minute}).
		Draw(t, "time"))
}

func (h *forwarderHistory) outage(t *rapid.T) {
	topics := rapid.SampledFrom([][]string{{"t"}, {"u"}, {"t", "u"}}).Draw(t, "topics")
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	for _, topic := range topics {
		h.w.out[topic] = !h.w.out[topic]
	}
}

func (h *forwarderHistory) restart(t *rapid.T) {
	r := rapid.SampledFrom(h.relays).Draw(t, "instance")
	if r.run == nil {
		h.start(t, r)
		return
	}
	h.stop(r)
	if rapid.Bool().Draw(t, "at once") {
		h.start(t, r)
	}
}

// fault is what a database may do to one instance.
func (h *forwarderHistory) fault(t *rapid.T) {
	r := rapid.SampledFrom(h.relays).Draw(t, "instance").run
	if r == nil {
		t.Skip("it does not run")
	}
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	switch rapid.SampledFrom([]string{"claim", "settle", "answer"}).Draw(t, "of") {
	case "claim":
		r.claimFails = !r.claimFails
	case "settle":
		r.settleFails = !r.settleFails
	default:
		r.answerLost = true
	}
}

// lease has all leases end, as if nobody had renewed them.
func (h *forwarderHistory) lease(t *rapid.T) {
	if !h.lossy {
		t.Skip("not in this history")
	}
	h.w.mu.Lock()
	h.w.disowned = true
	h.w.mu.Unlock()
	h.w.store.Advance(leaseTTL + time.Millisecond)
}

func (h *forwarderHistory) check(t *rapid.T) {
	synctest.Wait()
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	if h.w.wrong != "" {
		t.Fatal(h.w.wrong)
	}
}

// heal ends all faults but those of messages, and all transactions.
func (h *forwarderHistory) heal(t *rapid.T) {
	for _, tx := range h.txs {
		h.end(t, tx, true)
	}
	h.w.mu.Lock()
	clear(h.w.out)
	for _, r := range h.relays {
		if r.run != nil {
			r.run.claimFails, r.run.settleFails = false, false
		}
	}
	h.w.mu.Unlock()
	for _, r := range h.relays {
		if r.run == nil {
			h.start(t, r)
		}
	}
}

// finish has everything published or set aside, while a message now and then shows that its topic works.
func (h *forwarderHistory) finish(t *rapid.T) {
	h.heal(t)
	for i, left, since := 0, 0, 0; i-since < 100; i++ { // while there is progress
		for _, topic := range []string{"t", "u"} {
			h.count++
			m := &worldMessage{id: fmt.Sprint(h.count), topic: topic, plan: plans[0], committed: true}
			h.w.begin(m, nil)
			err := h.w.store.Save(t.Context(), nil, outbox.Message{
				UUID: m.id, Topic: topic, Payload: []byte(m.id), Headers: map[string]string{"id": m.id},
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(3 * time.Second)
		h.check(t)
		pending, err := h.w.store.Pending(t.Context(), nil, 1<<20)
		if err != nil || len(pending) == 0 {
			break
		}
		if len(pending) != left {
			left, since = len(pending), i
		}
	}
	for _, r := range h.relays {
		h.stop(r)
	}
	time.Sleep(time.Minute) // calls that were given up return
	h.check(t)
	h.verify(t)
}

func (h *forwarderHistory) verify(t *rapid.T) {
	pending, err := h.w.store.Pending(t.Context(), nil, 100)
	if err != nil || len(pending) > 0 {
		t.Fatalf("%d messages are stuck, the first is %s of key %q: %v", len(pending), pending[0].UUID, pending[0].Key, err)
	}
	aside, err := h.w.store.ListFailed(t.Context(), "", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range aside {
		m := h.w.messages[f.UUID]
		if last := m.attempts[len(m.attempts)-1]; !h.w.disowned && (last.err == nil || f.LastError != last.err.Error()) {
			t.Fatalf("%s was set aside for %q, not for %v", m.id, f.LastError, last.err)
		}
	}
	for _, m := range h.w.messages {
		last := m.plan[len(m.plan)-1]
		switch isAside := h.w.isAside(m); {
		case m.committed && m.delivered == 0 && !isAside:
			t.Fatalf("%s is lost", m.id)
		case m.committed && (last.err != nil || last.panics) && !isAside:
			t.Fatalf("%s can never be published, and was not set aside", m.id)
		case m.delivered > 1+m.kept && !h.w.disowned:
			t.Fatalf("%s was published %d times, for no reason", m.id, m.delivered)
		}
	}
}

func TestForwarder_AgreesWithAModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rapid.SyncTest(t, func(t *rapid.T) {
			h := newForwarderHistory(t)
			t.Repeat(map[string]func(*rapid.T){
				"publish": h.publish, "publish more": h.publish, "end": h.endOne, "end another": h.endOne, "time": h.time,
				"more time": h.time, "outage": h.outage, "restart": h.restart, "fault": h.fault, "lease": h.lease, "": h.check,
			})
			h.finish(t)
		})
	})
}
