package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/store/memory"
)

// The five methods by hand, for a relay of one's own. A Forwarder does the same with many messages at once.
func ExampleStore() {
	ctx := context.Background()
	store, err := memory.New()
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close() // ends the claims
	if err := store.Save(ctx, nil, outbox.Message{Topic: "orders.placed", Payload: []byte("order 42")}); err != nil {
		log.Fatal(err)
	}

	claimed, err := store.FetchPending(ctx, 100)
	if err != nil {
		log.Fatal(err)
	}
	for _, m := range claimed {
		msg := message.NewMessage(m.UUID, m.Payload)
		msg.Metadata = m.Headers
		outbox.SetKey(msg, m.Key)
		if err := printMessage(m.Topic, msg); err != nil { // broker.Publish in an application
			if err := store.MarkFailed(ctx, m.ID, err); err != nil {
				log.Fatal(err)
			}
			continue
		}
		if err := store.MarkProcessed(ctx, m.ID); err != nil {
			log.Fatal(err)
		}
	}

	// What was published a week ago need not be kept.
	if _, err := store.DeleteProcessedBefore(ctx, time.Now().AddDate(0, 0, -7)); err != nil {
		log.Fatal(err)
	}
	// Output: orders.placed: order 42
}

// A consumer without a Watermill router records by itself what it has handled, in the transaction of its writes.
func ExampleProcessedStore() {
	ctx := context.Background()
	store, err := memory.New()
	if err != nil {
		log.Fatal(err)
	}
	var processed outbox.ProcessedStore = store.Processed()

	handle := func(msg *message.Message) error {
		return store.InTx(ctx, func(ctx context.Context, tx *memory.Tx) error {
			isNew, err := processed.MarkProcessed(ctx, tx, "billing", msg.UUID, nil)
			if err != nil || !isNew {
				return err
			}
			tx.OnCommit(func() { fmt.Println("billed", string(msg.Payload)) }) // in SQL: tx.ExecContext
			return nil
		})
	}

	msg := message.NewMessage(watermill.NewUUID(), []byte("order 42"))
	for range 2 {
		if err := handle(msg); err != nil {
			log.Fatal(err)
		}
	}
	// Output: billed order 42
}

// Code that knows no particular store begins transactions by it.
func ExampleTransactor() {
	ctx := context.Background()
	store, err := memory.New()
	if err != nil {
		log.Fatal(err)
	}
	publisher, err := outbox.NewPublisher(store)
	if err != nil {
		log.Fatal(err)
	}

	var transactor outbox.Transactor = store
	err = transactor.RunInTx(ctx, func(ctx context.Context, _ any) error {
		msg := message.NewMessageWithContext(ctx, watermill.NewUUID(), []byte("order 42"))
		return publisher.Publish("orders.placed", msg)
	})
	if err != nil {
		log.Fatal(err)
	}

	forwardAll(store)
	// Output: orders.placed: order 42
}

// What was set aside waits for somebody to look at it: to be published after all, or thrown away.
func ExampleInspector() {
	ctx := context.Background()
	store, err := memory.New()
	if err != nil {
		log.Fatal(err)
	}
	placeOrders(store, "order 42", "nonsense")
	refuseAll(store, errors.New("no such topic"))

	var inspector outbox.Inspector = store
	failed, err := inspector.ListFailed(ctx, "", 100)
	if err != nil {
		log.Fatal(err)
	}
	for _, m := range failed {
		fmt.Printf("%s was set aside: %s\n", m.Payload, m.LastError)
		if string(m.Payload) == "nonsense" {
			_, err = inspector.Discard(ctx, m.ID)
		} else {
			_, err = inspector.Requeue(ctx, m.ID)
		}
		if err != nil {
			log.Fatal(err)
		}
	}

	forwardAll(store)
	// Output:
	// order 42 was set aside: no such topic
	// nonsense was set aside: no such topic
	// orders.placed: order 42
}

// refuseAll has a broker refuse, for good, what is in the outbox.
func refuseAll(store outbox.Store, reason error) {
	broker := brokerFunc(func(string, *message.Message) error { return reason })
	forwarder, err := outbox.NewForwarder(store, broker,
		outbox.WithPermanentError(func(err error) bool { return errors.Is(err, reason) }),
		outbox.WithLogger(watermill.NopLogger{}),
	)
	if err != nil {
		log.Fatal(err)
	}
	if _, err := forwarder.Drain(context.Background()); !errors.Is(err, reason) {
		log.Fatal(err)
	}
}

// An alarm on what is pending too long, or was set aside.
func ExampleStatsReporter() {
	ctx := context.Background()
	store, err := memory.New()
	if err != nil {
		log.Fatal(err)
	}
	store.Advance(-time.Hour) // an hour ago
	placeOrders(store, "order 42", "order 43")
	store.Advance(time.Hour)

	var reporter outbox.StatsReporter = store
	stats, err := reporter.Stats(ctx)
	if err != nil {
		log.Fatal(err)
	}
	if age := stats.OldestAge; age > time.Minute {
		fmt.Printf("%d messages are pending, the oldest for %v\n", stats.Pending, age.Round(time.Minute))
	}
	// Output: 2 messages are pending, the oldest for 1h0m0s
}
