package router_test

import (
	"context"

	"github.com/ThreeDotsLabs/watermill/components/cqrs"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"

	"github.com/watermill-outbox/outbox"
)

type (
	placeOrder   struct{ OrderID string }
	shipOrder    struct{ OrderID string }
	orderPlaced  struct{ OrderID string }
	orderShipped struct{ OrderID string }
)

// docs:begin keys

// keyed is what has a key: its messages stay in order.
type keyed interface{ key() string }

func (c placeOrder) key() string   { return c.OrderID }
func (c shipOrder) key() string    { return c.OrderID }
func (e orderPlaced) key() string  { return e.OrderID }
func (e orderShipped) key() string { return e.OrderID }

// docs:end keys

var marshaler = cqrs.JSONMarshaler{GenerateName: cqrs.StructName}

// docs:begin buses

type buses struct {
	commands *cqrs.CommandBus
	events   *cqrs.EventBus
}

// newBuses makes both over a publisher of the outbox. All events about orders go to one topic, so that they stay in
// order in Kafka, too; each command has a topic of its own.
func (s *service) newBuses(publisher message.Publisher) (*buses, error) {
	commands, err := cqrs.NewCommandBusWithConfig(publisher, cqrs.CommandBusConfig{
		GeneratePublishTopic: func(p cqrs.CommandBusGeneratePublishTopicParams) (string, error) {
			return s.topic("commands." + p.CommandName), nil
		},
		OnSend: func(p cqrs.CommandBusOnSendParams) error {
			return prepare(p.Message, p.Command)
		},
		Marshaler: marshaler,
	})
	if err != nil {
		return nil, err
	}
	events, err := cqrs.NewEventBusWithConfig(publisher, cqrs.EventBusConfig{
		GeneratePublishTopic: func(cqrs.GenerateEventPublishTopicParams) (string, error) {
			return s.topic("orders"), nil
		},
		OnPublish: func(p cqrs.OnEventSendParams) error {
			return prepare(p.Message, p.Event)
		},
		Marshaler: marshaler,
	})
	if err != nil {
		return nil, err
	}
	return &buses{commands, events}, nil
}

// docs:end buses

// docs:begin correlation

// prepare gives a message that a bus is about to publish its key and its correlation id.
func prepare(msg *message.Message, content any) error {
	if c, ok := content.(keyed); ok {
		outbox.SetKey(msg, c.key())
	}
	if id := correlationID(msg.Context()); id != "" {
		middleware.SetCorrelationID(id, msg)
	}
	return nil
}

// correlationID returns that of the message being handled or, where it all begins, that of the request.
func correlationID(ctx context.Context) string {
	if handled := cqrs.OriginalMessageFromCtx(ctx); handled != nil {
		return middleware.MessageCorrelationID(handled)
	}
	id, _ := ctx.Value(requestID{}).(string)
	return id
}

// requestID is the context key under which a middleware of the HTTP server, say, keeps the request's id.
type requestID struct{}

// docs:end correlation
