package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/store/memory"
)

// The order of middleware matters: what retries and gives up is outside of the Deduplicator, so that each attempt has a
// transaction of its own; what limits the handler or changes what it returns is inside.
func ExampleNewDeduplicator() {
	ctx := context.Background()
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
	retry := middleware.Retry{
		MaxRetries: 3, InitialInterval: 100 * time.Millisecond, MaxInterval: time.Second, Multiplier: 2, // without the last two it does not wait
		ResetContextOnRetry: true,
	}
	dedup, err := outbox.NewDeduplicator(store.Processed(), "billing")
	if err != nil {
		log.Fatal(err)
	}

	router := message.NewDefaultRouter(watermill.NopLogger{})
	router.AddMiddleware(
		poisonQueue,
		retry.Middleware,
		middleware.Recoverer,
		dedup.Middleware,
		middleware.Timeout(time.Minute),
		middleware.CorrelationID,
	)
	pubSub := gochannel.NewGoChannel(gochannel.Config{BlockPublishUntilSubscriberAck: true}, watermill.NopLogger{})
	router.AddConsumerHandler("bill-order", "orders.placed", pubSub, func(msg *message.Message) error {
		tx, ok := store.TxFromContext(msg.Context())
		if !ok {
			return outbox.ErrNoTx
		}
		tx.OnCommit(func() { fmt.Println("billed", string(msg.Payload)) }) // in SQL: tx.ExecContext
		return nil
	})
	go func() {
		if err := router.Run(ctx); err != nil {
			log.Fatal(err)
		}
	}()
	<-router.Running()

	msg := message.NewMessage(watermill.NewUUID(), []byte("order 42"))
	for range 2 { // the broker delivers it again
		if err := pubSub.Publish("orders.placed", msg); err != nil {
			log.Fatal(err)
		}
	}
	if err := router.Close(); err != nil {
		log.Fatal(err)
	}
	// Output: billed order 42
}

// Messages that a handler returns go to the outbox, in the transaction of its writes, when the handler's publisher is
// an outbox Publisher. A Forwarder brings them to the broker.
func ExampleDeduplicator_Middleware_returnedMessages() {
	ctx := context.Background()
	store, err := memory.New()
	if err != nil {
		log.Fatal(err)
	}
	publisher, err := outbox.NewPublisher(store)
	if err != nil {
		log.Fatal(err)
	}
	dedup, err := outbox.NewDeduplicator(store.Processed(), "billing")
	if err != nil {
		log.Fatal(err)
	}

	router := message.NewDefaultRouter(watermill.NopLogger{})
	router.AddMiddleware(dedup.Middleware)
	pubSub := gochannel.NewGoChannel(gochannel.Config{BlockPublishUntilSubscriberAck: true}, watermill.NopLogger{})
	router.AddHandler("bill-order", "orders.placed", pubSub, "invoices.sent", publisher,
		func(msg *message.Message) ([]*message.Message, error) {
			invoice := message.NewMessage(watermill.NewUUID(), []byte("invoice for "+string(msg.Payload)))
			return []*message.Message{invoice}, nil
		})
	go func() {
		if err := router.Run(ctx); err != nil {
			log.Fatal(err)
		}
	}()
	<-router.Running()

	if err := pubSub.Publish("orders.placed", message.NewMessage(watermill.NewUUID(), []byte("order 42"))); err != nil {
		log.Fatal(err)
	}
	if err := router.Close(); err != nil {
		log.Fatal(err)
	}

	forwardAll(store)
	// Output: invoices.sent: invoice for order 42
}

// Where the handler's publisher is an outbox Publisher that something decorates, name it to the Deduplicator.
func ExampleWithProducedPublisher() {
	ctx := context.Background()
	store, err := memory.New()
	if err != nil {
		log.Fatal(err)
	}
	publisher, err := outbox.NewPublisher(store)
	if err != nil {
		log.Fatal(err)
	}
	decorate := message.MessageTransformPublisherDecorator(func(msg *message.Message) {
		outbox.SetKey(msg, "customer 7")
	})
	decorated, err := decorate(publisher)
	if err != nil {
		log.Fatal(err)
	}
	dedup, err := outbox.NewDeduplicator(store.Processed(), "billing", outbox.WithProducedPublisher(decorated))
	if err != nil {
		log.Fatal(err)
	}

	router := message.NewDefaultRouter(watermill.NopLogger{})
	router.AddMiddleware(dedup.Middleware)
	pubSub := gochannel.NewGoChannel(gochannel.Config{BlockPublishUntilSubscriberAck: true}, watermill.NopLogger{})
	router.AddHandler("bill-order", "orders.placed", pubSub, "invoices.sent", decorated,
		func(msg *message.Message) ([]*message.Message, error) {
			invoice := message.NewMessage(watermill.NewUUID(), []byte("invoice for "+string(msg.Payload)))
			return []*message.Message{invoice}, nil
		})
	go func() {
		if err := router.Run(ctx); err != nil {
			log.Fatal(err)
		}
	}()
	<-router.Running()

	if err := pubSub.Publish("orders.placed", message.NewMessage(watermill.NewUUID(), []byte("order 42"))); err != nil {
		log.Fatal(err)
	}
	if err := router.Close(); err != nil {
		log.Fatal(err)
	}

	forwardAll(store)
	// Output: invoices.sent: invoice for order 42
}

// A mail cannot be taken back, so no transaction is held open for it. If the process dies after it was sent and before
// that was recorded, it is sent again.
func ExampleWithEffectElsewhere() {
	store, err := memory.New()
	if err != nil {
		log.Fatal(err)
	}
	dedup, err := outbox.NewDeduplicator(store.Processed(), "mails", outbox.WithEffectElsewhere())
	if err != nil {
		log.Fatal(err)
	}

	// In an application: router.AddMiddleware(dedup.Middleware)
	handler := dedup.Middleware(func(msg *message.Message) ([]*message.Message, error) {
		fmt.Printf("mail: %s is on its way\n", msg.Payload)
		return nil, nil
	})
	msg := message.NewMessage(watermill.NewUUID(), []byte("order 42"))
	for range 2 { // the broker delivers it again
		if _, err := handler(msg); err != nil {
			log.Fatal(err)
		}
	}
	// Output: mail: order 42 is on its way
}

// A payment provider calls a webhook again when it has not seen an answer; each call becomes a message with a UUID of
// its own, about the same event.
func ExampleWithMessageID() {
	store, err := memory.New()
	if err != nil {
		log.Fatal(err)
	}
	dedup, err := outbox.NewDeduplicator(store.Processed(), "billing",
		outbox.WithMessageID(func(msg *message.Message) (string, error) {
			id := msg.Metadata.Get("event_id")
			if id == "" {
				return "", errors.New("no event_id in the metadata")
			}
			return id, nil
		}))
	if err != nil {
		log.Fatal(err)
	}

	// In an application: router.AddMiddleware(dedup.Middleware)
	handler := dedup.Middleware(func(msg *message.Message) ([]*message.Message, error) {
		fmt.Printf("%s is paid\n", msg.Payload)
		return nil, nil
	})
	for range 2 {
		msg := message.NewMessage(watermill.NewUUID(), []byte("order 42"))
		msg.Metadata.Set("event_id", "evt_1077")
		if _, err := handler(msg); err != nil {
			log.Fatal(err)
		}
	}
	// Output: order 42 is paid
}

// The CQRS command processor with AckCommandHandlingErrors acknowledges a command whose handler has failed. Without
// SetRollback what the handler has written until then would be committed.
func ExampleSetRollback() {
	store, err := memory.New()
	if err != nil {
		log.Fatal(err)
	}
	dedup, err := outbox.NewDeduplicator(store.Processed(), "billing")
	if err != nil {
		log.Fatal(err)
	}

	handler := dedup.Middleware(func(msg *message.Message) ([]*message.Message, error) {
		tx, ok := store.TxFromContext(msg.Context())
		if !ok {
			return nil, outbox.ErrNoTx
		}
		tx.OnCommit(func() { fmt.Println("half a bill was written") })
		if err := errors.New("the other half failed"); err != nil {
			outbox.SetRollback(msg.Context())
		}
		return nil, nil // as the processor does
	})
	_, err = handler(message.NewMessage(watermill.NewUUID(), []byte("order 42")))
	fmt.Println(err)
	// Output: outbox: the handler asked for a rollback (outbox.SetRollback)
}

// Once per service, in the background: forget what was handled a month ago, which no broker delivers again.
func ExampleRunProcessedCleanup() {
	store, err := memory.New()
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var background sync.WaitGroup
	background.Go(func() {
		outbox.RunProcessedCleanup(ctx, store.Processed(), nil, 30*24*time.Hour, time.Hour)
	})

	// ... the service runs ...

	stop()
	background.Wait()
	// Output:
}
