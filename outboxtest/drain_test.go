package outboxtest_test

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
)

// publisherFunc is a function that is a message.Publisher.
type publisherFunc func(topic string, msg *message.Message) error

func (f publisherFunc) Publish(topic string, msgs ...*message.Message) error {
	for _, msg := range msgs {
		if err := f(topic, msg); err != nil {
			return err
		}
	}
	return nil
}

func (publisherFunc) Close() error { return nil }

func TestDrain_PublishesAllThatIsPending_OnceAndInTheOrderOfSaving(t *testing.T) {
	forEachStore(t, func(t *testing.T, h harness) {
		publish(t, h.Store, nil, "a", newMessage("1"), newMessage("2"))
		publish(t, h.Store, nil, "b", newMessage("3"))
		var published []string
		record := publisherFunc(func(topic string, msg *message.Message) error {
			published = append(published, topic+" "+string(msg.Payload))
			return nil
		})
		require.Equal(t, 3, outboxtest.Drain(t, h.Store, record))
		require.Equal(t, []string{"a 1", "a 2", "b 3"}, published)
		require.Zero(t, outboxtest.Drain(t, h.Store, record))
		require.Empty(t, outboxtest.Messages(t, h.Store, nil, ""))
	})
}

func TestDrain_LeavesWhatIsNotCommittedOrDelayed(t *testing.T) {
	store := newMemory(t)
	tx := store.Begin()
	publish(t, store, tx, "topic", newMessage("not committed"))
	later := newMessage("later")
	delay.Message(later, delay.For(time.Hour))
	publish(t, store, nil, "topic", later)
	nowhere := publisherFunc(func(string, *message.Message) error { return nil })
	require.Zero(t, outboxtest.Drain(t, store, nowhere))

	require.NoError(t, tx.Commit())
	store.Advance(time.Hour)
	require.Equal(t, 2, outboxtest.Drain(t, store, nowhere))
}

func TestDrain_RunsAFlowOfSeveralHandlersToItsEnd(t *testing.T) {
	forEachStore(t, func(t *testing.T, h harness) {
		pubSub := gochannel.NewGoChannel(gochannel.Config{BlockPublishUntilSubscriberAck: true}, nil)
		router := message.NewDefaultRouter(watermill.NopLogger{})
		publisher, err := outbox.NewPublisher(h.Store, outbox.WithOwnTx())
		require.NoError(t, err)
		router.AddHandler("pay", "placed", pubSub, "paid", publisher, message.PassthroughHandler)
		router.AddHandler("ship", "paid", pubSub, "shipped", publisher, message.PassthroughHandler)
		var running sync.WaitGroup
		running.Go(func() { _ = router.Run(context.Background()) })
		<-router.Running()

		publish(t, h.Store, nil, "placed", newMessage("order 1"), newMessage("order 2"))
		require.Equal(t, 6, outboxtest.Drain(t, h.Store, pubSub))
		require.Empty(t, outboxtest.Messages(t, h.Store, nil, ""))
		require.NoError(t, router.Close())
		running.Wait()
	})
}

func TestDrain_FailsTheTest_WhenPublishingFails(t *testing.T) {
	forEachStore(t, func(t *testing.T, h harness) {
		publish(t, h.Store, nil, "topic", newMessage("1"), newMessage("2"))
		refuse2 := publisherFunc(func(_ string, msg *message.Message) error {
			if string(msg.Payload) == "2" {
				return errors.New("not this one")
			}
			return nil
		})
		failure := failureOf(t, func(t testing.TB) { outboxtest.Drain(t, h.Store, refuse2) })
		require.Contains(t, failure, "outboxtest.Drain: after 1 messages: ")
		require.Contains(t, failure, "not this one")
	})
}

func TestDrain_FailsTheTest_WhenAPublishCallHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemory(t)
		publish(t, store, nil, "topic", newMessage("1"))
		release := make(chan struct{})
		hang := publisherFunc(func(string, *message.Message) error {
			<-release
			return nil
		})
		failure := failureOf(t, func(t testing.TB) { outboxtest.Drain(t, store, hang) })
		require.Contains(t, failure, "outboxtest.Drain: after 0 messages, a Publish call did not return within 30s")
		require.Len(t, outboxtest.Messages(t, store, nil, ""), 1)
		close(release)
	})
}

func TestDrain_FailsTheTest_WhenMessagesDoNotEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemory(t)
		publish(t, store, nil, "topic", newMessage("ping"))
		publisher, err := outbox.NewPublisher(store, outbox.WithOwnTx())
		require.NoError(t, err)
		again := publisherFunc(func(topic string, msg *message.Message) error {
			time.Sleep(time.Second)
			return publisher.Publish(topic, message.NewMessage(msg.UUID, msg.Payload))
		})
		failure := failureOf(t, func(t testing.TB) { outboxtest.Drain(t, store, again) })
		require.Contains(t, failure, context.DeadlineExceeded.Error())
	})
}

func TestDrain_FailsTheTest_WhileAForwarderRuns(t *testing.T) {
	store := newMemory(t)
	nowhere := publisherFunc(func(string, *message.Message) error { return nil })
	forwarder, err := outbox.NewForwarder(store, nowhere, outbox.WithLogger(watermill.NopLogger{}))
	require.NoError(t, err)
	ended := make(chan error)
	go func() { ended <- forwarder.Run(context.Background()) }()
	<-forwarder.Running()
	failure := failureOf(t, func(t testing.TB) { outboxtest.Drain(t, store, nowhere) })
	require.Contains(t, failure, outbox.ErrAlreadyRunning.Error())
	require.NoError(t, forwarder.Close())
	require.NoError(t, <-ended)
}

func TestDrain_FailsTheTest_WithoutAStoreOrAPublisher(t *testing.T) {
	require.Contains(t, failureOf(t, func(t testing.TB) { outboxtest.Drain(t, newMemory(t), nil) }),
		"the publisher is nil")
	nowhere := publisherFunc(func(string, *message.Message) error { return nil })
	require.Contains(t, failureOf(t, func(t testing.TB) { outboxtest.Drain(t, nil, nowhere) }), "the store is nil")
}
