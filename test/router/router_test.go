package router_test

import (
	"context"
	"errors"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/components/cqrs"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/jackc/pgx/v5"

	"github.com/watermill-outbox/outbox"
)

// shop is a service that takes orders.
type shop struct {
	*service
	publisher message.Publisher
	*buses
}

const shopTables = `
	CREATE TABLE requests (order_id text NOT NULL, amount integer NOT NULL CHECK (amount > 0));
	CREATE TABLE orders (id text NOT NULL);
	CREATE TABLE invoices (order_id text NOT NULL);
	CREATE TABLE shipments (order_id text NOT NULL);
	CREATE TABLE history (seq bigint GENERATED ALWAYS AS IDENTITY, order_id text NOT NULL, event text NOT NULL)`

// docs:begin publisher

// connect makes the publisher that everything in the shop goes through, and the buses over it.
func (s *shop) connect() error {
	publisher, err := outbox.NewPublisher(s.store)
	if err != nil {
		return err
	}
	s.publisher = traced{publisher}
	s.buses, err = s.newBuses(s.publisher)
	return err
}

// docs:end publisher

// docs:begin middleware

// addMiddleware makes a router handle each message once. The publisher writes to the outbox what handlers return.
func (s *service) addMiddleware(
	router *message.Router, publisher message.Publisher, opts ...outbox.DeduplicatorOption,
) error {
	poison, err := outbox.NewPublisher(s.store, outbox.WithOwnTx())
	if err != nil {
		return err
	}
	poisonQueue, err := middleware.PoisonQueueWithFilter(poison, s.topic("poison"), isPoison)
	if err != nil {
		return err
	}
	retry := middleware.Retry{
		MaxRetries: 3, InitialInterval: 50 * time.Millisecond, MaxInterval: time.Second, Multiplier: 2,
		ShouldRetry:         func(p middleware.RetryParams) bool { return isPoison(p.Err) },
		ResetContextOnRetry: true, Logger: s.logger,
	}
	opts = append(opts, outbox.WithProducedPublisher(publisher), outbox.WithLogger(s.logger))
	dedup, err := outbox.NewDeduplicator(s.store.Processed(), "shop", opts...)
	if err != nil {
		return err
	}
	router.AddMiddleware(
		continueTrace,
		poisonQueue,
		retry.Middleware,
		middleware.Recoverer,
		dedup.Middleware,
		middleware.Timeout(30*time.Second),
		middleware.CorrelationID,
	)
	return nil
}

// isPoison is false for errors after which the message is to come again.
func isPoison(err error) bool {
	return !errors.Is(err, context.Canceled) && !errors.Is(err, errComeAgain)
}

// docs:end middleware

var errComeAgain = errors.New("not now")

// docs:begin processors

func (s *shop) addHandlers(router *message.Router) error {
	commands, err := cqrs.NewCommandProcessorWithConfig(router, cqrs.CommandProcessorConfig{
		GenerateSubscribeTopic: func(p cqrs.CommandProcessorGenerateSubscribeTopicParams) (string, error) {
			return s.topic("commands." + p.CommandName), nil
		},
		SubscriberConstructor: func(p cqrs.CommandProcessorSubscriberConstructorParams) (message.Subscriber, error) {
			return s.subscriber(p.HandlerName)
		},
		Marshaler: marshaler,
	})
	if err != nil {
		return err
	}
	events, err := cqrs.NewEventProcessorWithConfig(router, cqrs.EventProcessorConfig{
		GenerateSubscribeTopic: func(cqrs.EventProcessorGenerateSubscribeTopicParams) (string, error) {
			return s.topic("orders"), nil
		},
		SubscriberConstructor: func(p cqrs.EventProcessorSubscriberConstructorParams) (message.Subscriber, error) {
			return s.subscriber(p.HandlerName) // of one group, two handlers would share the events
		},
		AckOnUnknownEvent: true, // the topic has events of other types
		Marshaler:         marshaler,
	})
	if err != nil {
		return err
	}
	groups, err := cqrs.NewEventGroupProcessorWithConfig(router, cqrs.EventGroupProcessorConfig{
		GenerateSubscribeTopic: func(cqrs.EventGroupProcessorGenerateSubscribeTopicParams) (string, error) {
			return s.topic("orders"), nil
		},
		SubscriberConstructor: func(p cqrs.EventGroupProcessorSubscriberConstructorParams) (message.Subscriber, error) {
			return s.subscriber(p.EventGroupName)
		},
		AckOnUnknownEvent: true, // as above
		Marshaler:         marshaler,
	})
	if err != nil {
		return err
	}
	return errors.Join(
		commands.AddHandlers(
			cqrs.NewCommandHandler("place-order", s.placeOrder),
			cqrs.NewCommandHandler("ship-order", s.shipOrder),
		),
		events.AddHandlers(cqrs.NewEventHandler("issue-invoice", s.issueInvoice)),
		groups.AddHandlersGroup("history",
			cqrs.NewGroupEventHandler(s.recordPlaced),
			cqrs.NewGroupEventHandler(s.recordShipped),
		),
	)
}

// docs:end processors

// docs:begin handlers

// placeOrder writes the order and publishes the event in the Deduplicator's transaction, which ctx carries.
func (s *shop) placeOrder(ctx context.Context, c *placeOrder) error {
	tx, err := s.tx(ctx)
	if err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, "INSERT INTO orders (id) VALUES ($1)", c.OrderID); err != nil {
		return err
	}
	return s.events.Publish(ctx, orderPlaced{c.OrderID})
}

func (s *shop) tx(ctx context.Context) (pgx.Tx, error) {
	tx, ok := s.store.TxFromContext(ctx)
	if !ok {
		return nil, errors.New("the context carries no transaction: is the Deduplicator among the middleware?")
	}
	return tx, nil
}

// docs:end handlers

// issueInvoice handles an event, and sends a command.
func (s *shop) issueInvoice(ctx context.Context, e *orderPlaced) error {
	tx, err := s.tx(ctx)
	if err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, "INSERT INTO invoices (order_id) VALUES ($1)", e.OrderID); err != nil {
		return err
	}
	return s.commands.Send(ctx, shipOrder{e.OrderID})
}

func (s *shop) shipOrder(ctx context.Context, c *shipOrder) error {
	tx, err := s.tx(ctx)
	if err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, "INSERT INTO shipments (order_id) VALUES ($1)", c.OrderID); err != nil {
		return err
	}
	return s.events.Publish(ctx, orderShipped{c.OrderID})
}

func (s *shop) recordPlaced(ctx context.Context, e *orderPlaced) error {
	return s.record(ctx, e.OrderID, "placed")
}

func (s *shop) recordShipped(ctx context.Context, e *orderShipped) error {
	return s.record(ctx, e.OrderID, "shipped")
}

func (s *shop) record(ctx context.Context, orderID, event string) error {
	tx, err := s.tx(ctx)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, "INSERT INTO history (order_id, event) VALUES ($1, $2)", orderID, event)
	return err
}

// docs:begin returned

// addNotifier adds a handler of Kafka in, Kafka out: the message that it returns goes through the outbox.
func (s *shop) addNotifier(router *message.Router) error {
	subscriber, err := s.subscriber("notify")
	if err != nil {
		return err
	}
	router.AddHandler("notify", s.topic("orders"), subscriber, s.topic("notifications"), s.publisher,
		func(msg *message.Message) ([]*message.Message, error) {
			notification := message.NewMessage(watermill.NewUUID(), msg.Payload)
			outbox.SetKey(notification, outbox.Key(msg))
			return message.Messages{notification}, nil
		})
	return nil
}

// docs:end returned
