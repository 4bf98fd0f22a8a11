package router_test

import (
	"testing"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"
)

// A handler that nacks its message wants it again: it runs once for each delivery, and a message that comes again is
// not poisoned as well.
func TestRouter_RunsTheHandlerOnceForEachDelivery_WhenItNacks(t *testing.T) {
	t.Parallel()
	p := newPipeline(t)
	p.fault = func(p *pipeline, msg *message.Message) error {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.arrivals[msg.UUID] < 20 { // for longer than Retry tries
			msg.Nack()
		}
		return nil
	}
	p.start(t, "first")
	in := input{uuid: watermill.NewUUID(), key: "key"}
	p.note(func() { p.inputs = append(p.inputs, in) })
	require.NoError(t, p.kafka.Publish(p.topic("inputs"), in.message()))
	p.awaitOutputs(t)
	p.requireOnce(t)
	require.Equal(t, 20, p.attempts[in.uuid])
}
