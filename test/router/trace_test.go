package router_test

import (
	"github.com/ThreeDotsLabs/watermill/message"
	"go.opentelemetry.io/otel/propagation"
)

// docs:begin trace

// traced is a publisher that writes the trace in a message's context into its metadata, as W3C's traceparent.
type traced struct{ message.Publisher }

func (p traced) Publish(topic string, msgs ...*message.Message) error {
	for _, msg := range msgs {
		propagation.TraceContext{}.Inject(msg.Context(), propagation.MapCarrier(msg.Metadata))
	}
	return p.Publisher.Publish(topic, msgs...)
}

// continueTrace is a middleware: it puts the trace in a message's metadata into its context. Begin the span of the
// handler here.
func continueTrace(h message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) ([]*message.Message, error) {
		carrier := propagation.MapCarrier(msg.Metadata)
		msg.SetContext(propagation.TraceContext{}.Extract(msg.Context(), carrier))
		return h(msg)
	}
}

// docs:end trace
