package outboxtest_test

import (
	"context"
	"fmt"
	"log"
	"sync"
	"testing"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/outboxtest"
	"github.com/watermill-outbox/outbox/store/memory"
)

// t stands for the *testing.T of a test.
var t exampleT

type exampleT struct{ testing.TB }

func (exampleT) Helper()                           {}
func (exampleT) Fatal(args ...any)                 { log.Fatal(args...) }
func (exampleT) Fatalf(format string, args ...any) { log.Fatalf(format, args...) }

// placeOrder stands for the code under test.
func placeOrder(publisher message.Publisher, order string) error {
	msg := message.NewMessage(watermill.NewUUID(), []byte(order))
	outbox.SetKey(msg, order)
	return publisher.Publish("orders.placed", msg)
}

// What has the code under test published in its transaction? The test need not commit to find out. t is the *testing.T.
func ExampleMessages() {
	store, err := memory.New()
	if err != nil {
		t.Fatal(err)
	}
	tx := store.Begin()
	defer tx.Rollback()

	if err := placeOrder(store.Publisher(tx), "order 42"); err != nil {
		t.Fatal(err)
	}

	for _, msg := range outboxtest.Messages(t, store, tx, "orders.placed") {
		fmt.Println(string(msg.Payload))
	}
	fmt.Println("committed:", len(outboxtest.Messages(t, store, nil, "")))
	// Output:
	// order 42
	// committed: 0
}

// A flow of two services, from the first message to the last, without waiting: each message has been handled when the
// Publish of Go channels returns, and Drain goes on until there are no more. t is the *testing.T.
func ExampleDrain() {
	store, err := memory.New()
	if err != nil {
		t.Fatal(err)
	}
	publisher, err := outbox.NewPublisher(store, outbox.WithOwnTx())
	if err != nil {
		t.Fatal(err)
	}
	pubSub := gochannel.NewGoChannel(gochannel.Config{BlockPublishUntilSubscriberAck: true}, watermill.NopLogger{})
	router := message.NewDefaultRouter(watermill.NopLogger{})
	router.AddHandler("bill-order", "orders.placed", pubSub, "invoices.sent", publisher,
		func(msg *message.Message) ([]*message.Message, error) {
			fmt.Println("billed", string(msg.Payload))
			return []*message.Message{message.NewMessage(watermill.NewUUID(), msg.Payload)}, nil
		})
	router.AddConsumerHandler("ship-order", "invoices.sent", pubSub, func(msg *message.Message) error {
		fmt.Println("shipped", string(msg.Payload))
		return nil
	})
	var running sync.WaitGroup
	running.Go(func() { _ = router.Run(context.Background()) })
	<-router.Running()

	if err := placeOrder(publisher, "order 42"); err != nil {
		t.Fatal(err)
	}
	fmt.Println("forwarded:", outboxtest.Drain(t, store, pubSub))

	if err := router.Close(); err != nil {
		t.Fatal(err)
	}
	running.Wait()
	// Output:
	// billed order 42
	// shipped order 42
	// forwarded: 2
}
