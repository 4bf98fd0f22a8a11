package outbox_test

import (
	"context"
	"errors"
	"expvar"
	"fmt"
	"log"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/store/memory"
)

// brokerFunc stands for the message.Publisher of a broker.
type brokerFunc func(topic string, msg *message.Message) error

func (f brokerFunc) Publish(topic string, msgs ...*message.Message) error {
	for _, msg := range msgs {
		if err := f(topic, msg); err != nil {
			return err
		}
	}
	return nil
}

func (f brokerFunc) Close() error { return nil }

func printMessage(topic string, msg *message.Message) error {
	_, err := fmt.Fprintf(os.Stdout, "%s: %s\n", topic, msg.Payload)
	return err
}

// forwardAll forwards what is in the outbox to a broker that prints it.
func forwardAll(store outbox.Store) {
	forwarder, err := outbox.NewForwarder(store, brokerFunc(printMessage), outbox.WithLogger(watermill.NopLogger{}))
	if err != nil {
		log.Fatal(err)
	}
	if _, err := forwarder.Drain(context.Background()); err != nil {
		log.Fatal(err)
	}
}

// placeOrders publishes a message about each order, outside of any transaction.
func placeOrders(store outbox.Store, orders ...string) {
	publisher, err := outbox.NewPublisher(store, outbox.WithOwnTx())
	if err != nil {
		log.Fatal(err)
	}
	for _, order := range orders {
		msg := message.NewMessage(watermill.NewUUID(), []byte(order))
		outbox.SetKey(msg, order)
		if err := publisher.Publish("orders.placed", msg); err != nil {
			log.Fatal(err)
		}
	}
}

// All options have defaults; the constructor returns an error for one that is out of its bounds.
func ExampleNewForwarder() {
	store, err := memory.New()
	if err != nil {
		log.Fatal(err)
	}
	_, err = outbox.NewForwarder(store, brokerFunc(printMessage),
		outbox.WithConcurrency(1024),                        // Publish calls at once
		outbox.WithRetention(7*24*time.Hour),                // keep what was published for a week
		outbox.WithMaxRetries(20),                           // then set aside
		outbox.WithRetryBackoff(time.Second, 5*time.Minute), // for a failing message, not for a broker that is down
		outbox.WithCloseTimeout(10*time.Second),             // below what the orchestrator allows
		outbox.WithLogger(watermill.NewSlogLogger(slog.Default())),
	)
	fmt.Println(err)

	_, err = outbox.NewForwarder(store, brokerFunc(printMessage), outbox.WithConcurrency(0))
	fmt.Println(err)
	// Output:
	// <nil>
	// outbox: forwarder: Concurrency is 0, must be from 1 to 65536
}

// A process of its own that relays until it is told to end. Then Run finishes what is being published, and gives its
// leases to the next instance.
func ExampleForwarder_Run() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	store, err := memory.New()
	if err != nil {
		log.Fatal(err)
	}
	placeOrders(store, "order 42")

	broker := brokerFunc(func(topic string, msg *message.Message) error {
		stop() // as if a signal had come: the message that is being published is not lost
		return printMessage(topic, msg)
	})
	forwarder, err := outbox.NewForwarder(store, broker)
	if err != nil {
		log.Fatal(err)
	}
	if err := forwarder.Run(ctx); err != nil {
		log.Fatal(err)
	}
	// Output: orders.placed: order 42
}

// For a cron job, or a script that empties the outbox before an upgrade.
func ExampleForwarder_Drain() {
	ctx := context.Background()
	store, err := memory.New()
	if err != nil {
		log.Fatal(err)
	}
	placeOrders(store, "order 42", "order 43")

	forwarder, err := outbox.NewForwarder(store, brokerFunc(printMessage))
	if err != nil {
		log.Fatal(err)
	}
	published, err := forwarder.Drain(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("published", published)
	// Unordered output:
	// orders.placed: order 42
	// orders.placed: order 43
	// published 2
}

// The Forwarder starts and ends with the router.
func ExampleForwarder_RouterPlugin() {
	ctx := context.Background()
	store, err := memory.New()
	if err != nil {
		log.Fatal(err)
	}
	pubSub := gochannel.NewGoChannel(gochannel.Config{BlockPublishUntilSubscriberAck: true}, watermill.NopLogger{})
	forwarder, err := outbox.NewForwarder(store, pubSub)
	if err != nil {
		log.Fatal(err)
	}

	router := message.NewDefaultRouter(watermill.NopLogger{})
	router.AddPlugin(forwarder.RouterPlugin)
	handled := make(chan string)
	router.AddConsumerHandler("bill-order", "orders.placed", pubSub, func(msg *message.Message) error {
		handled <- string(msg.Payload)
		return nil
	})
	go func() {
		if err := router.Run(ctx); err != nil {
			log.Fatal(err)
		}
	}()
	<-router.Running()

	placeOrders(store, "order 42")
	fmt.Println(<-handled)

	if err := router.Close(); err != nil {
		log.Fatal(err)
	}
	// Output: order 42
}

// After a commit in the process that relays, Wake saves the wait until the store notices it.
func ExampleForwarder_Wake() {
	ctx := context.Background()
	store, err := memory.New()
	if err != nil {
		log.Fatal(err)
	}
	arrived := make(chan string, 1)
	broker := brokerFunc(func(_ string, msg *message.Message) error {
		arrived <- string(msg.Payload)
		return nil
	})
	forwarder, err := outbox.NewForwarder(store, broker)
	if err != nil {
		log.Fatal(err)
	}
	go func() {
		if err := forwarder.Run(ctx); err != nil {
			log.Fatal(err)
		}
	}()
	<-forwarder.Running()

	placeOrders(store, "order 42")
	forwarder.Wake()
	fmt.Println(<-arrived)

	if err := forwarder.Close(); err != nil {
		log.Fatal(err)
	}
	// Output: order 42
}

// For a configuration that comes from somewhere else, a file or the environment.
func ExampleOptionFunc() {
	small := outbox.OptionFunc(func(c *outbox.Config) {
		c.Concurrency = 8
		c.MaxInFlight = 100
		c.MaxInFlightBytes = 1 << 20
	})

	store, err := memory.New()
	if err != nil {
		log.Fatal(err)
	}
	_, err = outbox.NewForwarder(store, brokerFunc(printMessage), small)
	fmt.Println(err)
	// Output: <nil>
}

// A message that is too large for the broker is set aside at its first attempt, and comes in the way of nothing else.
func ExampleWithPermanentError() {
	ctx := context.Background()
	store, err := memory.New()
	if err != nil {
		log.Fatal(err)
	}
	placeOrders(store, "order 42", "an order that goes on and on")

	errTooLarge := errors.New("message too large") // for Kafka: sarama.ErrMessageSizeTooLarge
	broker := brokerFunc(func(topic string, msg *message.Message) error {
		if len(msg.Payload) > 10 {
			return errTooLarge
		}
		return printMessage(topic, msg)
	})
	forwarder, err := outbox.NewForwarder(store, broker,
		outbox.WithPermanentError(func(err error) bool { return errors.Is(err, errTooLarge) }),
		outbox.WithLogger(watermill.NopLogger{}),
	)
	if err != nil {
		log.Fatal(err)
	}
	if _, err := forwarder.Drain(ctx); err != nil && !errors.Is(err, errTooLarge) {
		log.Fatal(err)
	}

	failed, err := store.ListFailed(ctx, "", 10)
	if err != nil {
		log.Fatal(err)
	}
	for _, m := range failed {
		fmt.Printf("set aside: %s (%s)\n", m.Payload, m.LastError)
	}
	// Output:
	// orders.placed: order 42
	// set aside: an order that goes on and on (message too large)
}

// Metrics: what a dashboard and an alarm need.
func ExampleWithObserver() {
	ctx := context.Background()
	metrics := new(expvar.Map)
	observer := outbox.WithObserver(outbox.ObserverFunc(func(_ context.Context, event outbox.Event) {
		switch e := event.(type) {
		case outbox.SavedEvent:
			metrics.Add("saved", int64(len(e.Messages)))
		case outbox.PublishedEvent:
			metrics.Add("published", 1) // and e.Duration into a histogram
		case outbox.FailedEvent:
			metrics.Add("retried", 1)
		case outbox.SetAsideEvent:
			metrics.Add("set aside", 1) // somebody should look at it
		case outbox.OutageBegunEvent:
			metrics.Add("topics down", 1)
		case outbox.OutageEndedEvent:
			metrics.Add("topics down", -1)
		}
	}))

	store, err := memory.New()
	if err != nil {
		log.Fatal(err)
	}
	err = store.InTx(ctx, func(_ context.Context, tx *memory.Tx) error {
		msg := message.NewMessage(watermill.NewUUID(), []byte("order 42"))
		return store.Publisher(tx, observer).Publish("orders.placed", msg)
	})
	if err != nil {
		log.Fatal(err)
	}
	forwarder, err := outbox.NewForwarder(store, brokerFunc(printMessage), observer)
	if err != nil {
		log.Fatal(err)
	}
	if _, err := forwarder.Drain(ctx); err != nil {
		log.Fatal(err)
	}
	fmt.Println(metrics)
	// Output:
	// orders.placed: order 42
	// {"published": 1, "saved": 1}
}
