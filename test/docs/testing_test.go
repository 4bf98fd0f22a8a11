package docs_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/components/delay"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/outboxtest"
	"github.com/watermill-outbox/outbox/store/memory"
)

// place is the code under test.
func place(publisher message.Publisher, orderID string) error {
	return publisher.Publish("orders.placed", orderPlaced(orderID))
}

// docs:begin messages
func TestPlace_PublishesTheOrder(t *testing.T) {
	store, err := memory.New()
	require.NoError(t, err)
	tx := store.Begin()
	defer func() { _ = tx.Rollback() }()

	require.NoError(t, place(store.Publisher(tx), "42")) // the code under test

	published := outboxtest.Messages(t, store, tx, "orders.placed")
	require.Len(t, published, 1)
	require.Equal(t, "42", outbox.Key(published[0]))
}

// docs:end messages

// docs:begin drain
func TestOrders_ArePlacedAndShipped(t *testing.T) {
	store, err := memory.New()
	require.NoError(t, err)
	publisher, err := outbox.NewPublisher(store, outbox.WithOwnTx())
	require.NoError(t, err)
	pubSub := gochannel.NewGoChannel(gochannel.Config{BlockPublishUntilSubscriberAck: true}, watermill.NopLogger{})
	router := message.NewDefaultRouter(watermill.NopLogger{})
	router.AddHandler("bill-order", "orders.placed", pubSub, "orders.billed", publisher,
		func(msg *message.Message) ([]*message.Message, error) {
			return []*message.Message{message.NewMessage(watermill.NewUUID(), msg.Payload)}, nil
		})
	var shipped []string
	router.AddConsumerHandler("ship-order", "orders.billed", pubSub, func(msg *message.Message) error {
		shipped = append(shipped, string(msg.Payload))
		return nil
	})
	var running sync.WaitGroup
	running.Go(func() { _ = router.Run(context.Background()) })
	<-router.Running()

	require.NoError(t, place(publisher, "42"))
	require.Equal(t, 2, outboxtest.Drain(t, store, pubSub)) // both have been handled when it returns

	require.NoError(t, router.Close())
	running.Wait()
	require.Equal(t, []string{"42"}, shipped)
}

// docs:end drain

// docs:begin advance
func TestReminder_ComesAfterADay(t *testing.T) {
	store, err := memory.New()
	require.NoError(t, err)
	publisher, err := outbox.NewPublisher(store, outbox.WithOwnTx())
	require.NoError(t, err)
	broker := gochannel.NewGoChannel(gochannel.Config{}, watermill.NopLogger{})
	msg := message.NewMessage(watermill.NewUUID(), nil)
	delay.Message(msg, delay.For(24*time.Hour))
	require.NoError(t, publisher.Publish("orders.reminders", msg))

	require.Zero(t, outboxtest.Drain(t, store, broker))
	store.Advance(24 * time.Hour)
	require.Equal(t, 1, outboxtest.Drain(t, store, broker))
	require.NoError(t, broker.Close())
}

// docs:end advance

// docs:begin synctest
func TestForwarder_TriesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, err := memory.New()
		require.NoError(t, err)
		publisher, err := outbox.NewPublisher(store, outbox.WithOwnTx())
		require.NoError(t, err)
		require.NoError(t, place(publisher, "42"))
		attempts := 0
		forwarder, err := outbox.NewForwarder(store, brokerFunc(func(string, *message.Message) error {
			if attempts++; attempts < 3 {
				return errors.New("not now")
			}
			return nil
		}))
		require.NoError(t, err)
		go func() { _ = forwarder.Run(context.Background()) }() // ends with Close

		time.Sleep(time.Hour) // takes no time: the clock of the test jumps while all others wait
		require.NoError(t, forwarder.Close())
		require.Equal(t, 3, attempts)
		require.Empty(t, outboxtest.Messages(t, store, nil, ""))
	})
}

// docs:end synctest
