package outbox_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/watermill-outbox/outbox"
)

// routed returns a message as a router hands it to a handler, with the names in its context.
func routed(t *testing.T, handler string, publisher message.Publisher) (routed *message.Message) {
	t.Helper()
	pubSub := gochannel.NewGoChannel(gochannel.Config{BlockPublishUntilSubscriberAck: true}, nil)
	router := newRouter(t)
	router.AddHandler(handler, "in", pubSub, "out", publisher, func(msg *message.Message) ([]*message.Message, error) {
		routed = msg
		return nil, nil
	})
	ended := make(chan error, 1)
	go func() { ended <- router.Run(context.Background()) }()
	<-router.Running()
	require.NoError(t, pubSub.Publish("in", newMessage("x", "")))
	require.NoError(t, router.Close())
	require.NoError(t, <-ended)
	routed.SetContext(context.WithoutCancel(routed.Context()))
	return routed
}

// script is what happens in one delivery, if the handler is called.
type script struct {
	late     bool // the context has ended before
	writes   int  // to the table, or elsewhere
	inside   int  // messages that the handler publishes in its transaction
	produced int  // messages that the handler returns
	ending   string
	publish  string // how the publisher takes what is returned
}

var (
	endings = []string{
		"ok", "ok", "ok", "cancelled", "error", "panic", "SetRollback", "nack", "cancelled, error", "poisoned",
	}
	publishes = []string{"works", "works", "refuses the last", "fails when it has written", "gets a nil"}
)

func drawScript(t *rapid.T) script {
	return script{
		late:     rapid.IntRange(0, 9).Draw(t, "late") == 9,
		writes:   rapid.IntRange(0, 2).Draw(t, "writes"),
		inside:   rapid.IntRange(0, 1).Draw(t, "inside"),
		produced: rapid.IntRange(0, 3).Draw(t, "produced"),
		ending:   rapid.SampledFrom(endings).Draw(t, "ending"),
		publish:  rapid.SampledFrom(publishes).Draw(t, "publish"),
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func (s script) succeeds() bool {
	return (s.ending == "ok" || s.ending == "cancelled") && (s.produced == 0 || s.publish == "works")
}

// handler is one that does what its script says.
type handler struct {
	group, name string
	elsewhere   bool
	routed      *message.Message
	middleware  message.HandlerMiddleware
}

func (h *handler) recorded() string { return h.group + "/" + h.name }

// consumers are handlers over one database, and what must have become of them.
type consumers struct {
	db        *database
	publisher *outbox.Publisher // refuses what is called refused
	failing   bool              // the decorated publisher, when it has written
	handlers  []*handler
	events    *events
	did       map[string]int // elsewhere, by handlers that do not write to the database

	// The model.
	marks            map[[2]string]bool // recorded name and id → more than half an hour old
	effects, pending map[string]int
	messages         map[string]*message.Message // as delivered last, by id
	duplicates       int
}

// Publish is a decorator of the outbox.
func (c *consumers) Publish(topic string, msgs ...*message.Message) error {
	err := c.publisher.Publish(topic, msgs...)
	if c.failing {
		err = errors.Join(err, errDown)
	}
	return err
}

func (c *consumers) Close() error { return nil }

func newConsumers(t *testing.T, db *database) *consumers {
	t.Helper()
	c := &consumers{db: db, events: &events{}}
	var err error
	c.publisher, err = outbox.NewPublisher(db.LeasedStore, outbox.WithKeyFunc(
		func(_ string, msg *message.Message) (string, error) {
			if string(msg.Payload) == "refused" {
				return "", errDown
			}
			return "", nil
		}))
	require.NoError(t, err)
	for _, h := range []*handler{
		{group: "a", name: "bill"},
		{group: "a", name: "ship"},
		{group: "b", name: "bill", elsewhere: true},
	} {
		h.routed = routed(t, h.name, c.publisher)
		opts := []outbox.DeduplicatorOption{outbox.WithLogger(watermill.NopLogger{}), outbox.WithObserver(c.events)}
		if h.name == "ship" || h.elsewhere {
			opts = append(opts, outbox.WithProducedPublisher(c))
		} // the other finds the publisher by its name
		if h.elsewhere {
			opts = append(opts, outbox.WithEffectElsewhere())
		}
		d, err := outbox.NewDeduplicator(db.processed, h.group, opts...)
		require.NoError(t, err)
		h.middleware = d.Middleware
		c.handlers = append(c.handlers, h)
	}
	return c
}

// reset begins a history.
func (c *consumers) reset(t *testing.T) {
	t.Helper()
	_, err := drain(t, c.db.LeasedStore, newBroker())
	require.NoError(t, err)
	_, err = c.db.processed.PurgeProcessedBefore(t.Context(), nil, c.db.now().Add(time.Hour))
	require.NoError(t, err)
	require.NoError(t, c.db.forget())
	*c.events = events{}
	c.did, c.effects, c.pending, c.duplicates = map[string]int{}, map[string]int{}, map[string]int{}, 0
	c.marks, c.messages = map[[2]string]bool{}, map[string]*message.Message{}
}

// deliver delivers a message by a script, and notes in the model what must come of it.
func (c *consumers) deliver(t *rapid.T, h *handler, msg *message.Message, s script) {
	ctx, cancel := context.WithCancel(h.routed.Context())
	defer cancel()
	if s.late {
		cancel()
	}
	msg.SetContext(ctx)
	c.failing = s.publish == "fails when it has written"
	if isClosed(msg.Nacked()) { // once and for all: the broker brings another copy
		s.ending = "nack"
	}
	calls := 0
	err := safely(h.middleware(func(msg *message.Message) ([]*message.Message, error) {
		calls++
		return c.play(h, msg, s, cancel)
	}), msg)
	require.Equal(t, ctx, msg.Context(), "the message's own context is back")

	mark := [2]string{h.recorded(), msg.UUID}
	_, seen := c.marks[mark]
	switch {
	case s.late:
		require.ErrorIs(t, err, context.Canceled)
		require.Zero(t, calls)
		return
	case seen:
		require.True(t, err == nil || err == errNacked, "%v", err) //nolint:errorlint // the message was nacked before
		require.Zero(t, calls, "%s has handled %s before", h.recorded(), msg.UUID)
		c.duplicates++
		return
	}
	require.Equal(t, 1, calls)
	require.Equal(t, s.succeeds(), err == nil, "%v", err)
	if s.succeeds() || h.elsewhere {
		c.effects[h.recorded()+" "+msg.UUID] += s.writes
	}
	if !s.succeeds() {
		if s.publish == "gets a nil" && (s.ending == "ok" || s.ending == "cancelled") {
			require.ErrorIs(t, err, outbox.ErrInvalidMessage)
		}
		return
	}
	c.marks[mark] = false
	c.pending["returned by "+h.recorded()+" "+msg.UUID] += s.produced
	if !h.elsewhere {
		c.pending["published by "+h.recorded()+" "+msg.UUID] += s.inside
	}
}

// safely is a handler's caller that lives through panics: Watermill's. Like that one it acknowledges nothing that was nacked.
func safely(h message.HandlerFunc, msg *message.Message) error {
	_, err := middleware.Recoverer(h)(msg)
	if err == nil && isClosed(msg.Nacked()) {
		return errNacked
	}
	return err
}

var errNacked = errors.New("nacked")

func (c *consumers) play(
	h *handler, msg *message.Message, s script, cancel context.CancelFunc,
) ([]*message.Message, error) {
	what := h.recorded() + " " + msg.UUID
	if h.elsewhere {
		c.did[what] += s.writes
		s.writes, s.inside = 0, 0
	}
	for range s.writes {
		if err := c.db.write(msg.Context(), what); err != nil {
			return nil, fmt.Errorf("unexpected: %w", err)
		}
	}
	for range s.inside {
		m := message.NewMessageWithContext(msg.Context(), watermill.NewUUID(), []byte("published by "+what))
		if err := c.publisher.Publish("inside", m); err != nil {
			return nil, fmt.Errorf("unexpected: %w", err)
		}
	}
	var produced []*message.Message
	for range s.produced {
		produced = append(produced, newMessage("returned by "+what, ""))
	}
	if s.produced > 0 {
		switch s.publish {
		case "refuses the last":
			produced[s.produced-1].Payload = []byte("refused")
		case "gets a nil":
			produced[s.produced-1] = nil
		case "fails when it has written":
			if h.name == "bill" && !h.elsewhere { // its publisher is not the one that can fail then
				produced[s.produced-1].Payload = []byte("refused")
			}
		}
	}
	return produced, end(msg, s.ending, cancel)
}

// end is how a handler returns.
func end(msg *message.Message, ending string, cancel context.CancelFunc) error {
	switch ending {
	case "error":
		return errDown
	case "panic":
		panic("boom")
	case "SetRollback":
		outbox.SetRollback(msg.Context())
	case "nack":
		msg.Nack()
	case "cancelled": // as Router.Close does
		cancel()
	case "cancelled, error":
		cancel()
		return msg.Context().Err()
	case "poisoned": // as a PoisonQueue inside does
		msg.Metadata.Set(middleware.ReasonForPoisonedKey, "down")
	}
	return nil
}

// check compares the database with the model.
func (c *consumers) check(t *rapid.T) {
	nonzero := func(counts map[string]int) map[string]int {
		maps.DeleteFunc(counts, func(_ string, n int) bool { return n == 0 })
		return counts
	}
	effects, pending := c.db.counts(t)
	for what, n := range c.did {
		effects[what] += n
	}
	require.Equal(t, nonzero(c.effects), nonzero(effects))
	require.Equal(t, nonzero(c.pending), pending)
	require.Len(t, collect[outbox.DeduplicatedEvent](c.events), c.duplicates)
	for _, h := range c.handlers {
		for id := range c.messages {
			_, want := c.marks[[2]string{h.recorded(), id}]
			require.Equal(t, want, c.db.isMarked(t, h.recorded(), id), "%s, %s: is it marked?", h.recorded(), id)
		}
	}
}

func (c *consumers) hourPasses(t *rapid.T) {
	require.NoError(t, c.db.age())
	for mark := range c.marks {
		c.marks[mark] = true
	}
}

// purge forgets old marks: the messages may run again.
func (c *consumers) purge(t *rapid.T) {
	commits := rapid.Bool().Draw(t, "commits")
	err := c.db.RunInTx(context.Background(), func(ctx context.Context, tx any) error {
		n, err := c.db.processed.PurgeProcessedBefore(ctx, tx, c.db.now().Add(-30*time.Minute))
		require.NoError(t, err)
		require.EqualValues(t, countTrue(c.marks), n)
		if !commits {
			return errDown
		}
		return nil
	})
	if !commits {
		require.ErrorIs(t, err, errDown)
		return
	}
	require.NoError(t, err)
	maps.DeleteFunc(c.marks, func(_ [2]string, old bool) bool { return old })
}

func countTrue(of map[[2]string]bool) (n int) {
	for _, is := range of {
		if is {
			n++
		}
	}
	return n
}

// Whatever a handler does and however often a message comes: its writes, its mark and the messages it returned or
// published are there together or not at all, once for each group, handler and id until the mark is purged; it is
// acknowledged exactly then; and the message has its own context back. A handler with its effect elsewhere may repeat
// that, but not its mark and messages.
func TestDeduplicator_KeepsEffectMarkAndMessagesTogether_InAnyHistory(t *testing.T) {
	for name, checks := range map[string]string{"memory": "100", "sqlite": "15"} {
		t.Run(name, func(t *testing.T) {
			set := flag.Lookup("rapid.checks")
			defer func(before string) { require.NoError(t, set.Value.Set(before)) }(set.Value.String())
			if set.Value.String() == set.DefValue { // a longer run was not asked for
				require.NoError(t, set.Value.Set(checks))
			}
			db := memoryDatabase(t)
			if name == "sqlite" {
				db = sqliteDatabase(t)
			}
			c := newConsumers(t, db)
			rapid.Check(t, func(rt *rapid.T) {
				c.reset(t)
				rt.Repeat(map[string]func(*rapid.T){
					"deliver": func(rt *rapid.T) {
						id := rapid.SampledFrom([]string{"1", "2", "3"}).Draw(rt, "id")
						c.messages[id] = message.NewMessage(id, nil)
						c.deliver(rt, rapid.SampledFrom(c.handlers).Draw(rt, "handler"), c.messages[id], drawScript(rt))
					},
					"deliver the same message again": func(rt *rapid.T) {
						if len(c.messages) == 0 {
							rt.Skip("there is none")
						}
						id := rapid.SampledFrom(slices.Sorted(maps.Keys(c.messages))).Draw(rt, "id")
						c.deliver(rt, rapid.SampledFrom(c.handlers).Draw(rt, "handler"), c.messages[id], drawScript(rt))
					},
					"an hour passes": c.hourPasses,
					"purge":          c.purge,
					"":               c.check,
				})
			})
		})
	}
}

// Of all concurrent deliveries of a message to a handler exactly one has its effect, whichever of them fail, and at no
// time is the handler called twice for the same message. With the effect elsewhere, the messages are saved once.
func TestDeduplicator_ConcurrentDeliveriesHaveOneEffect(t *testing.T) {
	forEachDatabase(t, func(t *testing.T, db *database) {
		const deliveries, messages = 6, 8
		publisher := db.publisher(t)
		var wg sync.WaitGroup
		want := map[string]int{}
		for _, group := range []string{"a", "b", "elsewhere"} {
			opts := []outbox.DeduplicatorOption{outbox.WithLogger(watermill.NopLogger{})}
			if group == "elsewhere" {
				opts = append(opts, outbox.WithEffectElsewhere())
			}
			d, err := outbox.NewDeduplicator(db.processed, group, opts...)
			require.NoError(t, err)
			routed := routed(t, "handler", publisher)
			for id := range messages {
				what := fmt.Sprintf("%s %d", group, id)
				want[what] = 1
				var running, calls atomic.Int32
				h := d.Middleware(func(msg *message.Message) ([]*message.Message, error) {
					if running.Add(1) > 1 && group != "elsewhere" {
						return nil, errors.New("the handler is called for a message that another call is handling")
					}
					defer running.Add(-1)
					if group != "elsewhere" {
						if err := db.write(msg.Context(), what); err != nil {
							return nil, err
						}
					}
					runtime.Gosched() // so that others come in between
					how := []string{"error", "panic", "SetRollback", "cancelled", "ok"}[min(calls.Add(1)-1, 4)]
					return []*message.Message{newMessage(what, "")}, end(msg, how, func() {})
				})
				for range deliveries {
					wg.Go(func() { // ends when its message is acknowledged
						for attempt := 0; ; attempt++ {
							msg := message.NewMessageWithContext(routed.Context(), fmt.Sprint(id), nil)
							err := safely(h, msg)
							if err == nil {
								return
							}
							if strings.Contains(err.Error(), "another call") || attempt > 10 {
								t.Errorf("attempt %d: %v", attempt, err)
								return
							}
						}
					})
				}
			}
		}
		wg.Wait()
		runtime.KeepAlive(publisher) // as a router would
		effects, pending := db.counts(t)
		require.Equal(t, want, pending)
		maps.DeleteFunc(want, func(what string, _ int) bool { return strings.HasPrefix(what, "elsewhere") })
		require.Equal(t, want, effects)
	})
}

// While one delivery is being handled, another of the same message waits for its end. If it fails, the other handles
// the message, so that a redelivery is never acknowledged on the strength of an attempt that came to nothing.
func TestDeduplicator_ARedeliveryThatWaitsTakesOverWhenTheFirstFails(t *testing.T) {
	for _, ending := range []string{"error", "panic", "SetRollback", "nack", "ok"} {
		test := func(t *testing.T, db *database, allWait func()) {
			d, err := outbox.NewDeduplicator(db.processed, "group", outbox.WithLogger(watermill.NopLogger{}))
			require.NoError(t, err)
			begun, goOn := make(chan struct{}, 2), make(chan struct{})
			calls := 0 // one call at a time, or the race detector sees it
			h := d.Middleware(func(msg *message.Message) ([]*message.Message, error) {
				calls++
				begun <- struct{}{}
				<-goOn
				if err := db.write(msg.Context(), "effect"); err != nil || calls > 1 {
					return nil, err
				}
				return nil, end(msg, ending, nil)
			})
			var wg sync.WaitGroup
			var first, second error
			wg.Go(func() { first = safely(h, message.NewMessage("id", nil)) })
			<-begun
			wg.Go(func() { second = safely(h, message.NewMessage("id", nil)) })
			allWait()
			require.Empty(t, begun, "the other waits")
			close(goOn)
			wg.Wait()
			require.Equal(t, ending == "ok", first == nil, "%v", first)
			require.NoError(t, second)
			effects, _ := db.counts(t)
			require.Equal(t, map[string]int{"effect": 1}, effects)
		}
		t.Run("memory "+ending, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test(t, memoryDatabase(t), synctest.Wait) })
		})
		t.Run("sqlite "+ending, func(t *testing.T) { test(t, sqliteDatabase(t), func() {}) })
	}
}
