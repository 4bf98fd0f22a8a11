package router_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"
)

// disturbances are what happens while inputs are being handled. An instance and a Forwarder run when they begin.
var disturbances = []struct {
	name string
	// fault is called by the handler when it has written.
	fault func(p *pipeline, msg *message.Message) error
	// disturb publishes inputs, and makes sure that what the name says has happened.
	disturb func(t *testing.T, p *pipeline)
}{
	{"handlers fail and are tried again", failTwice, tryAgain},
	{"handlers panic and are tried again", panicTwice, tryAgain},
	{"messages whose handlers always fail are poisoned", failAlways, giveUp},
	{"messages are nacked and come again", nackOnce, comeAgain},
	{"inputs are published twice, and all of them later again", noFault, duplicate},
	{"the router is restarted while handlers are busy", holdUntilClosed, restartRouter},
	{"another instance joins and leaves", noFault, rebalance},
	{"a partition moves on while its handler is busy", holdUntilMoved, moveOn},
	{"the Forwarder is restarted", noFault, restartForwarder},
}

// Whatever happens, each input has its effect once and one output, which is delivered at least once, and the outputs of
// a key come in the order of its inputs.
func TestKafkaInKafkaOut_HasOneEffectAndOneOutputForEachInput(t *testing.T) {
	t.Parallel()
	for _, d := range disturbances {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			p := newPipeline(t)
			p.fault = d.fault
			d.disturb(t, p)
			p.awaitOutputs(t)
			p.requireOnce(t)
		})
	}
}

func noFault(*pipeline, *message.Message) error { return nil }

// isChosen picks every tenth input.
func (in input) isChosen() bool { return in.number%10 == 3 }

// isChosen tells that of a message's input, and how often it has been tried.
func (p *pipeline) isChosen(msg *message.Message) (attempt int, chosen bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.attempts[msg.UUID], input{number: p.numbers[msg.UUID]}.isChosen()
}

// requireAttempts requires that each chosen input was tried so often.
func (p *pipeline) requireAttempts(t *testing.T, n int) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, in := range p.inputs {
		if in.isChosen() {
			require.GreaterOrEqual(t, p.attempts[in.uuid], n)
		}
	}
}

var errFault = errors.New("something has failed")

func failTwice(p *pipeline, msg *message.Message) error {
	if attempt, chosen := p.isChosen(msg); chosen && attempt <= 2 {
		return errFault
	}
	return nil
}

func panicTwice(p *pipeline, msg *message.Message) error {
	if attempt, chosen := p.isChosen(msg); chosen && attempt <= 2 {
		panic(errFault)
	}
	return nil
}

func tryAgain(t *testing.T, p *pipeline) {
	p.start(t, "first")
	p.publish(t, 10, 1)
	p.awaitOutputs(t)
	p.requireAttempts(t, 3)
}

func failAlways(p *pipeline, msg *message.Message) error {
	if _, chosen := p.isChosen(msg); chosen {
		return errFault
	}
	return nil
}

func giveUp(t *testing.T, p *pipeline) {
	p.isHopeless = input.isChosen
	p.start(t, "first")
	p.publish(t, 2, 1)
	p.await(t, "all are settled", func() bool { return len(p.settled) == len(p.inputs) })
	p.requireAttempts(t, 4)
}

func nackOnce(p *pipeline, msg *message.Message) error {
	if attempt, chosen := p.isChosen(msg); chosen && attempt == 1 {
		return fmt.Errorf("%w: %w", errComeAgain, errFault)
	}
	return nil
}

func comeAgain(t *testing.T, p *pipeline) {
	p.start(t, "first")
	p.publish(t, 10, 1)
	p.awaitOutputs(t)
	p.requireAttempts(t, 2)
	p.mu.Lock()
	defer p.mu.Unlock()
	require.GreaterOrEqual(t, p.arrivals["first"], len(p.inputs)+len(p.inputs)/10)
}

func duplicate(t *testing.T, p *pipeline) {
	p.start(t, "first")
	p.publish(t, 5, 2)
	p.republish(t)
	p.publish(t, 3, 2)
	const duplicates = (5 + 5 + 3) * pipelineKeys
	p.await(t, "all duplicates are absorbed", func() bool { return p.absorbed >= duplicates })
}

// holdUntilClosed has every tenth handler wait until its router closes. Half of them fail then; the others do what they
// have to, though nobody hears any more that the message was handled.
func holdUntilClosed(p *pipeline, msg *message.Message) error {
	attempt, chosen := p.isChosen(msg)
	if !chosen || attempt > 1 {
		return nil
	}
	var held int
	var released bool
	p.note(func() {
		if released = p.released; !released {
			p.held[msg.UUID] = true
			held = len(p.held)
		}
	})
	if released {
		return nil
	}
	<-msg.Context().Done()
	if held%2 == 0 {
		return msg.Context().Err()
	}
	return nil
}

func restartRouter(t *testing.T, p *pipeline) {
	for range 4 {
		stop := p.start(t, "first")
		var before int
		p.note(func() { before = len(p.held) })
		p.publish(t, 2, 1)
		p.await(t, "a handler is busy", func() bool { return len(p.held) > before })
		stop()
	}
	p.note(func() { p.released = true })
	p.start(t, "first")
	p.publish(t, 2, 1)
	p.await(t, "one that was handled when its router had closed came again", func() bool {
		for uuid := range p.held {
			if p.settled[uuid] && p.attempts[uuid] == 1 && p.arrivals[uuid] > 1 {
				return true
			}
		}
		return false
	})
}

func rebalance(t *testing.T, p *pipeline) {
	p.start(t, "first")
	for range 2 {
		var before, arrived int
		p.note(func() { before = p.arrivals["second"] })
		stop := p.start(t, "second")
		for arrived = before; arrived == before; {
			p.publish(t, 1, 1)
			p.awaitOutputs(t)
			p.note(func() { arrived = p.arrivals["second"] })
		}
		p.publish(t, 2, 1)
		stop() // while they are being handled
		p.publish(t, 1, 1)
		p.awaitOutputs(t)
	}
}

// holdUntilMoved has a handler wait until its message has come to another instance.
func holdUntilMoved(p *pipeline, msg *message.Message) error {
	p.mu.Lock()
	held := p.numbers[msg.UUID] == 3 && p.attempts[msg.UUID] == 1
	p.mu.Unlock()
	if !held {
		return nil
	}
	p.note(func() { p.held[msg.UUID] = true })
	for {
		p.mu.Lock()
		moved, changed := p.arrivals[msg.UUID] > 1, p.changed
		p.mu.Unlock()
		if moved {
			return nil
		}
		select {
		case <-changed:
		case <-msg.Context().Done():
			return msg.Context().Err()
		}
	}
}

func moveOn(t *testing.T, p *pipeline) {
	p.start(t, "first")
	p.publish(t, 2, 1)
	p.await(t, "the handler is busy", func() bool { return len(p.held) == 1 })
	p.start(t, "second")
	p.publish(t, 2, 1)
	p.await(t, "both have handled it", func() bool { return p.absorbed > 0 && p.arrivals["second"] > 0 })
	p.publish(t, 2, 1)
}

func restartForwarder(t *testing.T, p *pipeline) {
	p.start(t, "first")
	for range 3 {
		p.publish(t, 2, 1)
		p.await(t, "some outputs have come", func() bool { return len(p.confirmed) > len(p.inputs)-2*pipelineKeys })
		p.stopForwarder()
		p.publish(t, 2, 1)
		p.await(t, "all have been tried", func() bool { return len(p.attempts) == len(p.inputs) })
		p.note(func() { require.LessOrEqual(t, len(p.confirmed), len(p.inputs)-2*pipelineKeys) })
		p.forwarder(t)
	}
}
