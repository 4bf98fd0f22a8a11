package main

import (
	"context"
	"errors"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/components/cqrs"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/watermill-outbox/outbox/store/sqlite"
)

// addHandlers adds a handler of the command, which publishes the event, and two handlers of the event.
func addHandlers(
	router *message.Router, store *sqlite.Store, broker message.Subscriber, events *cqrs.EventBus,
	logger watermill.LoggerAdapter,
) error {
	commandProcessor, err := cqrs.NewCommandProcessorWithConfig(router, cqrs.CommandProcessorConfig{
		GenerateSubscribeTopic: func(p cqrs.CommandProcessorGenerateSubscribeTopicParams) (string, error) {
			return commandTopic(p.CommandName), nil
		},
		SubscriberConstructor: func(cqrs.CommandProcessorSubscriberConstructorParams) (message.Subscriber, error) {
			return broker, nil
		},
		Marshaler: marshaler,
		Logger:    logger,
	})
	if err != nil {
		return err
	}
	eventProcessor, err := cqrs.NewEventProcessorWithConfig(router, cqrs.EventProcessorConfig{
		GenerateSubscribeTopic: func(p cqrs.EventProcessorGenerateSubscribeTopicParams) (string, error) {
			return eventTopic(p.EventName), nil
		},
		SubscriberConstructor: func(cqrs.EventProcessorSubscriberConstructorParams) (message.Subscriber, error) {
			return broker, nil
		},
		Marshaler: marshaler,
		Logger:    logger,
	})
	if err != nil {
		return err
	}
	h := handlers{store: store, events: events}
	return errors.Join(
		commandProcessor.AddHandlers(cqrs.NewCommandHandler("place-order", h.placeOrder)),
		eventProcessor.AddHandlers(
			cqrs.NewEventHandler("send-invoice", h.sendInvoice),
			cqrs.NewEventHandler("count-sales", h.countSales),
		),
	)
}

type handlers struct {
	store  *sqlite.Store
	events *cqrs.EventBus
}

// placeOrder writes the order and publishes the event in the Deduplicator's transaction, which ctx carries: the order,
// the event and the note that the command was handled are committed together.
func (h handlers) placeOrder(ctx context.Context, c *PlaceOrder) error {
	err := h.exec(ctx, `INSERT INTO orders (id, amount) VALUES (?, ?)`, c.OrderID, c.Amount)
	if err != nil {
		return err
	}
	return h.events.Publish(ctx, OrderPlaced(*c))
}

func (h handlers) sendInvoice(ctx context.Context, e *OrderPlaced) error {
	return h.exec(ctx, `INSERT INTO invoices (order_id, amount) VALUES (?, ?)`, e.OrderID, e.Amount)
}

func (h handlers) countSales(ctx context.Context, e *OrderPlaced) error {
	return h.exec(ctx, `UPDATE sales SET orders = orders + 1, amount = amount + ?`, e.Amount)
}

func (h handlers) exec(ctx context.Context, query string, args ...any) error {
	tx, ok := h.store.TxFromContext(ctx)
	if !ok {
		return errors.New("the context carries no transaction: is the Deduplicator among the middleware?")
	}
	_, err := tx.ExecContext(ctx, query, args...)
	return err
}
