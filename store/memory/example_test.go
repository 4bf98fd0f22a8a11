package memory_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/components/delay"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/store/memory"
)

func ExampleNew() {
	ctx := context.Background()
	store, err := memory.New()
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()

	tx := store.Begin()
	msg := message.NewMessage(watermill.NewUUID(), []byte("order 42"))
	if err := store.Publisher(tx).Publish("orders.placed", msg); err != nil {
		log.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		log.Fatal(err)
	}

	msgs, err := store.FetchPending(ctx, 10)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s: %s\n", msgs[0].Topic, msgs[0].Payload)
	// Output: orders.placed: order 42
}

// As if two processes shared a database: one relays, the other stands by and takes over. With WithSlots they share the
// work.
func ExampleStore_NewInstance() {
	ctx := context.Background()
	here, err := memory.New()
	if err != nil {
		log.Fatal(err)
	}
	there := here.NewInstance()
	defer there.Close()

	if err := here.Save(ctx, nil, outbox.Message{Topic: "orders.placed", Payload: []byte("order 42")}); err != nil {
		log.Fatal(err)
	}
	fetch := func(name string, store *memory.Store) {
		msgs, err := store.FetchPending(ctx, 10)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(name, "claimed", len(msgs))
	}
	fetch("here", here)
	fetch("there", there) // stands by
	if err := here.Close(); err != nil {
		log.Fatal(err)
	}
	fetch("there", there) // takes over
	// Output:
	// here claimed 1
	// there claimed 0
	// there claimed 1
}

// A test need not wait for a delay.
func ExampleStore_Advance() {
	ctx := context.Background()
	store, err := memory.New()
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()

	err = store.InTx(ctx, func(_ context.Context, tx *memory.Tx) error {
		msg := message.NewMessage(watermill.NewUUID(), []byte("order 42 is not paid yet"))
		delay.Message(msg, delay.For(24*time.Hour))
		return store.Publisher(tx).Publish("reminders", msg)
	})
	if err != nil {
		log.Fatal(err)
	}

	store.Advance(24 * time.Hour)
	msgs, err := store.FetchPending(ctx, 10)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s: %s\n", msgs[0].Topic, msgs[0].Payload)
	// Output: reminders: order 42 is not paid yet
}

// What else a transaction changes, when it commits.
func ExampleTx_OnCommit() {
	ctx := context.Background()
	store, err := memory.New()
	if err != nil {
		log.Fatal(err)
	}

	orders := 0
	err = store.InTx(ctx, func(_ context.Context, tx *memory.Tx) error {
		tx.OnCommit(func() { orders++ })
		return store.Publisher(tx).Publish("orders.placed", message.NewMessage(watermill.NewUUID(), nil))
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("orders:", orders)
	// Output: orders: 1
}
