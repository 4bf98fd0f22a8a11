package router_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
)

// pipeline is Kafka in, Kafka out: routers whose handler writes a row for each input and returns an output, which goes
// through the outbox. Inputs are published in rounds, one of each key.
type pipeline struct {
	*service
	publisher message.Publisher // the outbox's
	// fault is called by the handler when it has written. It may fail, panic or wait.
	fault func(p *pipeline, msg *message.Message) error
	// isHopeless says for which inputs it always fails.
	isHopeless func(input) bool

	stopForwarder func()
	stopRouters   []func() // which do nothing the second time

	mu        sync.Mutex
	inputs    []input
	numbers   map[string]int  // of the inputs, by UUID
	arrivals  map[string]int  // deliveries that have come to a router, by instance and by UUID
	attempts  map[string]int  // runs of the handler, by UUID
	settled   map[string]bool // messages that were handled or given up, by UUID
	absorbed  int             // deliveries of inputs that had been handled
	held      map[string]bool // messages whose handlers fault has held up, by UUID
	released  bool            // no more are held up
	outputs   []*message.Message
	confirmed map[string]bool // inputs with an output
	changed   chan struct{}   // closed, and replaced, when any of these changes
}

// input is a message that was published: the round's one of its key.
type input struct {
	uuid, key string
	number    int
}

const (
	pipelineKeys   = 24
	pipelineTables = `CREATE TABLE effects (input text NOT NULL)`
)

func newPipeline(t *testing.T) *pipeline {
	t.Helper()
	p := &pipeline{
		service: newService(t, pipelineTables, "inputs", "outputs", "poison"),
		fault:   noFault, isHopeless: func(input) bool { return false },
		numbers:  map[string]int{},
		arrivals: map[string]int{}, attempts: map[string]int{}, confirmed: map[string]bool{}, settled: map[string]bool{}, held: map[string]bool{},
		changed: make(chan struct{}),
	}
	publisher, err := outbox.NewPublisher(p.store)
	require.NoError(t, err)
	p.publisher = publisher
	p.watch(t)
	p.forwarder(t)
	return p
}

// note changes what is watched, and wakes who waits for it.
func (p *pipeline) note(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
	close(p.changed)
	p.changed = make(chan struct{})
}

// await waits until done says so, which is asked after each change.
func (p *pipeline) await(t *testing.T, what string, done func() bool) {
	t.Helper()
	timeout := time.After(patience)
	for {
		p.mu.Lock()
		ok, changed := done(), p.changed
		p.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-timeout:
			p.mu.Lock()
			defer p.mu.Unlock()
			require.Failf(t, "it does not come to this: "+what,
				"%d of %d inputs have an output", len(p.confirmed), len(p.inputs))
		}
	}
}

// publish publishes rounds of inputs, each input so many times.
func (p *pipeline) publish(t *testing.T, rounds, times int) {
	t.Helper()
	for range rounds * pipelineKeys {
		var in input
		p.note(func() {
			number := len(p.inputs)
			in = input{watermill.NewUUID(), fmt.Sprintf("key-%02d", number%pipelineKeys), number}
			p.inputs = append(p.inputs, in)
			p.numbers[in.uuid] = number
		})
		for range times {
			require.NoError(t, p.kafka.Publish(p.topic("inputs"), in.message()))
		}
	}
}

// republish publishes all inputs again, with the UUIDs that they have.
func (p *pipeline) republish(t *testing.T) {
	t.Helper()
	p.mu.Lock()
	inputs := p.inputs
	p.mu.Unlock()
	for _, in := range inputs {
		require.NoError(t, p.kafka.Publish(p.topic("inputs"), in.message()))
	}
}

func (in input) message() *message.Message {
	msg := message.NewMessage(in.uuid, fmt.Appendf(nil, "input %d", in.number))
	outbox.SetKey(msg, in.key)
	return msg
}

// hopeful are the inputs that should have an output.
func (p *pipeline) hopeful() []input { return slices.DeleteFunc(slices.Clone(p.inputs), p.isHopeless) }

// awaitOutputs waits until all of those have one.
func (p *pipeline) awaitOutputs(t *testing.T) {
	t.Helper()
	p.await(t, "each input has an output", func() bool { return len(p.confirmed) == len(p.hopeful()) })
}

// forwarder runs another Forwarder, after the one before was stopped.
func (p *pipeline) forwarder(t *testing.T) {
	t.Helper()
	p.stopForwarder = p.forward(t, p.kafka)
}

// start runs an instance: a router with a subscriber of its own, of the group of all.
func (p *pipeline) start(t *testing.T, instance string) (stop func()) {
	t.Helper()
	router, err := message.NewRouter(message.RouterConfig{}, p.logger)
	require.NoError(t, err)
	router.AddMiddleware(func(h message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) {
			p.note(func() { p.arrivals[instance]++; p.arrivals[msg.UUID]++ })
			produced, err := h(msg)
			if err == nil {
				p.note(func() { p.settled[msg.UUID] = true })
			}
			return produced, err
		}
	})
	require.NoError(t, p.addMiddleware(router, p.publisher, outbox.WithObserver(p)))
	subscriber, err := p.subscriber("approve")
	require.NoError(t, err)
	router.AddHandler("approve", p.topic("inputs"), subscriber, p.topic("outputs"), p.publisher, p.approve)
	stop = run(t, router)
	p.stopRouters = append(p.stopRouters, stop)
	return stop
}

// Observe hears of what the Deduplicators absorb.
func (p *pipeline) Observe(_ context.Context, event outbox.Event) {
	if _, ok := event.(outbox.DeduplicatedEvent); ok {
		p.note(func() { p.absorbed++ })
	}
}

// approve is the handler.
func (p *pipeline) approve(msg *message.Message) ([]*message.Message, error) {
	p.note(func() { p.attempts[msg.UUID]++ })
	tx, ok := p.store.TxFromContext(msg.Context())
	if !ok {
		return nil, errors.New("no transaction")
	}
	// The context of a message ends when its router closes; what the handler has to say then is for fault to decide.
	ctx := context.WithoutCancel(msg.Context())
	if _, err := tx.Exec(ctx, "INSERT INTO effects (input) VALUES ($1)", msg.UUID); err != nil {
		return nil, err
	}
	if err := p.fault(p, msg); err != nil {
		return nil, err
	}
	output := message.NewMessage(watermill.NewUUID(), msg.Payload)
	output.Metadata.Set("input", msg.UUID)
	outbox.SetKey(output, outbox.Key(msg))
	return message.Messages{output}, nil
}

// watch keeps all outputs that come.
func (p *pipeline) watch(t *testing.T) {
	t.Helper()
	subscriber, err := p.subscriber("watcher")
	require.NoError(t, err)
	messages, err := subscriber.Subscribe(context.Background(), p.topic("outputs"))
	require.NoError(t, err)
	ended := make(chan struct{})
	go func() { // ends with the subscription
		defer close(ended)
		for msg := range messages {
			p.note(func() {
				p.outputs = append(p.outputs, msg)
				p.confirmed[msg.Metadata.Get("input")] = true
			})
			msg.Ack()
		}
	}()
	t.Cleanup(func() {
		require.NoError(t, subscriber.Close())
		<-ended
	})
}

// requireOnce stops the routers and requires what P5 and P4 promise: each input has one row and was answered by one
// output, delivered once at least, and the first deliveries of the outputs of a key are in the order of its inputs.
// Hopeless inputs have neither, and were poisoned once.
func (p *pipeline) requireOnce(t *testing.T) {
	t.Helper()
	for _, stop := range p.stopRouters {
		stop()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	rows, err := p.pool.Query(t.Context(), "SELECT input, count(*) FROM effects GROUP BY input")
	require.NoError(t, err)
	effects := map[string]int{}
	var uuid string
	var count int
	_, err = pgx.ForEachRow(rows, []any{&uuid, &count}, func() error { effects[uuid] = count; return nil })
	require.NoError(t, err)
	expectedEffects, expectedOrder := map[string]int{}, map[string][]string{}
	for _, in := range p.hopeful() {
		expectedEffects[in.uuid] = 1
		expectedOrder[in.key] = append(expectedOrder[in.key], in.uuid)
	}
	require.Equal(t, expectedEffects, effects)

	answers, order := map[string]string{}, map[string][]string{} // the output of an input; inputs of a key
	for _, output := range p.outputs {
		uuid := output.Metadata.Get("input")
		if answer, again := answers[uuid]; again {
			require.Equal(t, answer, output.UUID, "two outputs for one input")
			continue
		}
		answers[uuid] = output.UUID
		order[outbox.Key(output)] = append(order[outbox.Key(output)], uuid)
	}
	require.Equal(t, expectedOrder, order)
	require.Len(t, p.poisoned(t), len(p.inputs)-len(p.hopeful()))
}
