package main

import (
	"github.com/ThreeDotsLabs/watermill/components/cqrs"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/store/sqlite"
)

// PlaceOrder is the command to place an order.
type PlaceOrder struct {
	OrderID string
	Amount  int
}

// OrderPlaced is the event that an order was placed.
type OrderPlaced struct {
	OrderID string
	Amount  int
}

// keyed is what has a key: its messages stay in order.
type keyed interface{ key() string }

func (c PlaceOrder) key() string  { return c.OrderID }
func (e OrderPlaced) key() string { return e.OrderID }

var marshaler = cqrs.JSONMarshaler{GenerateName: cqrs.StructName}

// buses are where commands and events go: into the outbox.
type buses struct {
	commands *cqrs.CommandBus
	events   *cqrs.EventBus
}

// newBuses makes both over one publisher. It takes the transaction from the context of each message, which is the one
// that Send and Publish were called with; without one they return outbox.ErrNoTx.
func newBuses(store *sqlite.Store) (*buses, error) {
	publisher, err := outbox.NewPublisher(store)
	if err != nil {
		return nil, err
	}
	commands, err := cqrs.NewCommandBusWithConfig(publisher, cqrs.CommandBusConfig{
		GeneratePublishTopic: func(p cqrs.CommandBusGeneratePublishTopicParams) (string, error) {
			return commandTopic(p.CommandName), nil
		},
		OnSend: func(p cqrs.CommandBusOnSendParams) error {
			if command, ok := p.Command.(keyed); ok {
				outbox.SetKey(p.Message, command.key())
			}
			return nil
		},
		Marshaler: marshaler,
	})
	if err != nil {
		return nil, err
	}
	events, err := cqrs.NewEventBusWithConfig(publisher, cqrs.EventBusConfig{
		GeneratePublishTopic: func(p cqrs.GenerateEventPublishTopicParams) (string, error) {
			return eventTopic(p.EventName), nil
		},
		OnPublish: func(p cqrs.OnEventSendParams) error {
			if event, ok := p.Event.(keyed); ok {
				outbox.SetKey(p.Message, event.key())
			}
			return nil
		},
		Marshaler: marshaler,
	})
	if err != nil {
		return nil, err
	}
	return &buses{commands, events}, nil
}

func commandTopic(name string) string { return "commands." + name }
func eventTopic(name string) string   { return "events." + name }
