package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/components/cqrs"
	"github.com/ThreeDotsLabs/watermill/components/delay"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/store/memory"
)

// The transaction travels in the context of each message. So a Publisher fits wherever a message.Publisher does, and
// one serves the whole application.
func ExampleNewPublisher() {
	ctx := context.Background()
	store, err := memory.New()
	if err != nil {
		log.Fatal(err)
	}
	publisher, err := outbox.NewPublisher(store)
	if err != nil {
		log.Fatal(err)
	}

	tx := store.Begin()
	msg := message.NewMessage(watermill.NewUUID(), []byte("order 42"))
	msg.SetContext(store.ContextWithTx(ctx, tx))
	if err := publisher.Publish("orders.placed", msg); err != nil {
		log.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		log.Fatal(err)
	}

	forwardAll(store)
	// Output: orders.placed: order 42
}

// An event bus publishes in the transaction that the context of its Publish carries, as that of InTx does.
func ExampleNewPublisher_eventBus() {
	ctx := context.Background()
	store, err := memory.New()
	if err != nil {
		log.Fatal(err)
	}
	publisher, err := outbox.NewPublisher(store)
	if err != nil {
		log.Fatal(err)
	}
	bus, err := cqrs.NewEventBusWithConfig(publisher, cqrs.EventBusConfig{
		GeneratePublishTopic: func(params cqrs.GenerateEventPublishTopicParams) (string, error) {
			return params.EventName, nil
		},
		Marshaler: cqrs.JSONMarshaler{GenerateName: cqrs.StructName},
	})
	if err != nil {
		log.Fatal(err)
	}

	type OrderPlaced struct{ Order int }
	err = store.InTx(ctx, func(ctx context.Context, _ *memory.Tx) error {
		return bus.Publish(ctx, OrderPlaced{Order: 42})
	})
	if err != nil {
		log.Fatal(err)
	}

	forwardAll(store)
	// Output: OrderPlaced: {"Order":42}
}

// Within one transaction, a Publisher bound to it saves setting the context of each message. The stores have the same
// with the type of their transactions: store.Publisher(tx).
func ExamplePublisher_WithTx() {
	store, err := memory.New()
	if err != nil {
		log.Fatal(err)
	}
	publisher, err := outbox.NewPublisher(store)
	if err != nil {
		log.Fatal(err)
	}

	tx := store.Begin()
	bound := publisher.WithTx(tx)
	if err := bound.Publish("orders.placed", message.NewMessage(watermill.NewUUID(), []byte("order 42"))); err != nil {
		log.Fatal(err)
	}
	if err := tx.Rollback(); err != nil {
		log.Fatal(err)
	}

	forwardAll(store) // nothing: the transaction was rolled back
	// Output:
}

// A store of your own gives its users a typed Publisher method with it.
func ExamplePublisherWithTx() {
	store, err := memory.New()
	if err != nil {
		log.Fatal(err)
	}
	publisherOf := func(tx *memory.Tx, opts ...outbox.PublisherOption) *outbox.Publisher {
		return outbox.PublisherWithTx(store, tx, opts...)
	}

	tx := store.Begin()
	msg := message.NewMessage(watermill.NewUUID(), []byte("order 42"))
	if err := publisherOf(tx).Publish("orders.placed", msg); err != nil {
		log.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		log.Fatal(err)
	}

	forwardAll(store)
	// Output: orders.placed: order 42
}

// For transactions that a store's own ContextWithTx has no type for, such as *sqlx.Tx and bun.Tx.
func ExampleContextWithTx() {
	ctx := context.Background()
	store, err := memory.New()
	if err != nil {
		log.Fatal(err)
	}
	publisher, err := outbox.NewPublisher(store)
	if err != nil {
		log.Fatal(err)
	}

	tx := store.Begin()
	ctx = outbox.ContextWithTx(ctx, store, tx)
	msg := message.NewMessageWithContext(ctx, watermill.NewUUID(), []byte("order 42"))
	if err := publisher.Publish("orders.placed", msg); err != nil {
		log.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		log.Fatal(err)
	}

	forwardAll(store)
	// Output: orders.placed: order 42
}

// Two outboxes never take each other's transactions.
func ExampleTxFromContext() {
	ctx := context.Background()
	orders, err := memory.New()
	if err != nil {
		log.Fatal(err)
	}
	payments, err := memory.New()
	if err != nil {
		log.Fatal(err)
	}

	ctx = outbox.ContextWithTx(ctx, orders, orders.Begin())
	_, inOrders := outbox.TxFromContext(ctx, orders)
	_, inPayments := outbox.TxFromContext(ctx, payments)
	fmt.Println(inOrders, inPayments)
	// Output: true false
}

// Messages of one key reach the broker in the order in which they were published, across topics.
func ExampleSetKey() {
	ctx := context.Background()
	store, err := memory.New()
	if err != nil {
		log.Fatal(err)
	}

	err = store.InTx(ctx, func(_ context.Context, tx *memory.Tx) error {
		for _, topic := range []string{"orders.placed", "payments.received", "orders.shipped"} {
			msg := message.NewMessage(watermill.NewUUID(), []byte("order 42"))
			outbox.SetKey(msg, "order 42")
			if err := store.Publisher(tx).Publish(topic, msg); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}

	forwardAll(store)
	// Output:
	// orders.placed: order 42
	// payments.received: order 42
	// orders.shipped: order 42
}

// A message that a consumer publishes on may keep its place in the order.
func ExampleKey() {
	received := message.NewMessage(watermill.NewUUID(), []byte("order 42"))
	outbox.SetKey(received, "order 42") // as the producer did

	invoice := message.NewMessage(watermill.NewUUID(), []byte("invoice"))
	outbox.SetKey(invoice, outbox.Key(received))
	fmt.Println(outbox.Key(invoice))
	// Output: order 42
}

// For Kafka, pass it to the marshaler of the publisher that the Forwarder is given:
//
//	marshaler := kafka.NewWithPartitioningMarshaler(outbox.PartitionKey)
func ExamplePartitionKey() {
	keyed := message.NewMessage("e47bdd1c", nil)
	outbox.SetKey(keyed, "order 42")
	unkeyed := message.NewMessage("0a6cf2b3", nil)

	for _, msg := range []*message.Message{keyed, unkeyed} {
		key, err := outbox.PartitionKey("orders.placed", msg)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(key)
	}
	// Output:
	// order 42
	// 0a6cf2b3
}

// Where messages tell what they are about already, no code that publishes needs to call SetKey.
func ExampleWithKeyFunc() {
	ctx := context.Background()
	store, err := memory.New()
	if err != nil {
		log.Fatal(err)
	}
	publisher, err := outbox.NewPublisher(store,
		outbox.WithKeyFunc(func(_ string, msg *message.Message) (string, error) {
			return msg.Metadata.Get("customer"), nil
		}))
	if err != nil {
		log.Fatal(err)
	}

	err = store.InTx(ctx, func(ctx context.Context, _ *memory.Tx) error {
		msg := message.NewMessageWithContext(ctx, watermill.NewUUID(), []byte("order 42"))
		msg.Metadata.Set("customer", "Ada")
		return publisher.Publish("orders.placed", msg)
	})
	if err != nil {
		log.Fatal(err)
	}

	broker := brokerFunc(func(topic string, msg *message.Message) error {
		fmt.Printf("%s, key %s: %s\n", topic, outbox.Key(msg), msg.Payload)
		return nil
	})
	forwarder, err := outbox.NewForwarder(store, broker)
	if err != nil {
		log.Fatal(err)
	}
	if _, err := forwarder.Drain(ctx); err != nil {
		log.Fatal(err)
	}
	// Output: orders.placed, key Ada: order 42
}

// A forgotten key is an error at once, rather than two messages that change places some day.
func ExampleWithKeyRequired() {
	store, err := memory.New()
	if err != nil {
		log.Fatal(err)
	}
	publisher, err := outbox.NewPublisher(store, outbox.WithKeyRequired())
	if err != nil {
		log.Fatal(err)
	}

	msg := message.NewMessage(watermill.NewUUID(), []byte("order 42"))
	err = publisher.WithTx(store.Begin()).Publish("orders.placed", msg)
	fmt.Println(errors.Is(err, outbox.ErrNoKey))
	// Output: true
}

// One behind the other, without keys: simple, and as slow as one Publish call to the broker after another.
func ExampleWithTotalOrder() {
	ctx := context.Background()
	store, err := memory.New()
	if err != nil {
		log.Fatal(err)
	}
	publisher, err := outbox.NewPublisher(store, outbox.WithTotalOrder())
	if err != nil {
		log.Fatal(err)
	}

	err = store.InTx(ctx, func(ctx context.Context, _ *memory.Tx) error {
		for _, entry := range []string{"debit 5", "credit 3", "debit 1"} {
			msg := message.NewMessageWithContext(ctx, watermill.NewUUID(), []byte(entry))
			if err := publisher.Publish("ledger", msg); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}

	forwardAll(store)
	// Output:
	// ledger: debit 5
	// ledger: credit 3
	// ledger: debit 1
}

// Watermill's PoisonQueue publishes a message that cannot be handled after the handler's transaction was rolled back,
// so there is none for it.
func ExampleWithOwnTx() {
	store, err := memory.New()
	if err != nil {
		log.Fatal(err)
	}
	publisher, err := outbox.NewPublisher(store, outbox.WithOwnTx())
	if err != nil {
		log.Fatal(err)
	}
	poisonQueue, err := middleware.PoisonQueue(publisher, "orders.poisoned")
	if err != nil {
		log.Fatal(err)
	}

	// In an application: router.AddMiddleware(poisonQueue)
	handler := poisonQueue(func(*message.Message) ([]*message.Message, error) {
		return nil, errors.New("unknown currency")
	})
	if _, err := handler(message.NewMessage(watermill.NewUUID(), []byte("order 42"))); err != nil {
		log.Fatal(err)
	}

	forwardAll(store)
	// Output: orders.poisoned: order 42
}

// Delays are Watermill's own, set on the message or, for an event bus, in the context: delay.WithContext.
func ExamplePublisher_Publish_delayed() {
	ctx := context.Background()
	store, err := memory.New()
	if err != nil {
		log.Fatal(err)
	}

	err = store.InTx(ctx, func(_ context.Context, tx *memory.Tx) error {
		msg := message.NewMessage(watermill.NewUUID(), []byte("order 42 is not paid yet"))
		delay.Message(msg, delay.For(24*time.Hour))
		return store.Publisher(tx).Publish("reminders", msg)
	})
	if err != nil {
		log.Fatal(err)
	}

	forwardAll(store)
	fmt.Println("a day later")
	store.Advance(24 * time.Hour)
	forwardAll(store)
	// Output:
	// a day later
	// reminders: order 42 is not paid yet
}
