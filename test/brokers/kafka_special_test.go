package brokers_test

import (
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/test/kafkatest"
)

func TestKafka_HasAKeyInOnePartition_AndSpreadsMessagesWithoutOne(t *testing.T) {
	t.Parallel()
	w := newWorld(t, newKafka(t))
	c := w.consume(t)
	w.forward(t)
	writers, wait := w.publishing(t, 20, 0)
	wait()
	const keyless = 100
	for range keyless {
		require.NoError(t, w.inTx(t.Context(), message.NewMessage(watermill.NewUUID(), nil), nil))
	}
	c.await(t, len(writers)*20+keyless)

	ofKey := map[string]map[int32]bool{}
	for _, msg := range c.received {
		partition, ok := kafka.MessagePartitionFromCtx(msg.Context())
		require.True(t, ok)
		key := outbox.Key(msg)
		if ofKey[key] == nil {
			ofKey[key] = map[int32]bool{}
		}
		ofKey[key][partition] = true
	}
	require.Len(t, ofKey[""], partitions)
	for key, in := range ofKey {
		if key != "" {
			require.Len(t, in, 1, key)
		}
	}
}

func TestKafka_StopsNobodyElse_WhileATopicDoesNotExist_AndPublishesWhenItDoes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, newKafka(t))
	c := w.consume(t)
	w.forward(t)
	missing := *w
	missing.topic = newTopic()
	for range 20 {
		require.NoError(t, missing.inTx(t.Context(), message.NewMessage(watermill.NewUUID(), nil), nil))
	}
	writers, wait := w.publishing(t, 50, 0)
	wait()
	requireDelivered(t, writers, c.await(t, len(writers)*50))

	missing.broker.CreateTopic(t, missing.topic)
	missing.consume(t).await(t, 20)
	require.Zero(t, w.retries(t))
}

// The broker refuses the whole of a batch in which one message is too large. sarama makes batches of what is published at the
// same time, so the neighbours fail with it, and must not be set aside for that.
func TestKafka_SetsAsideWhatTheBrokerFindsTooLarge_AndNotItsNeighbours(t *testing.T) {
	t.Parallel()
	k := newKafka(t).(kafkaBroker)
	w := newWorld(t, k)
	w.topic = newTopic()
	limit := "20000"
	k.createTopic(t, w.topic, map[string]*string{"max.message.bytes": &limit})
	c := w.consume(t)
	// Eight at a time, so that they do not exceed the limit together.
	w.forward(t, outbox.WithConcurrency(8), outbox.WithRetryBackoff(10*time.Millisecond, 100*time.Millisecond))
	tooLarge := message.NewMessage(watermill.NewUUID(), make([]byte, 30_000))
	require.NoError(t, w.inTx(t.Context(), tooLarge, nil))
	wr, failed := &writer{}, []outbox.Message{}
	require.Eventually(t, func() bool { // only while others get through is it the message's own fault
		require.NoError(t, w.publish(t.Context(), wr, 10))
		var err error
		failed, err = w.store.ListFailed(t.Context(), "", 10)
		require.NoError(t, err)
		return len(failed) > 0
	}, patience, time.Millisecond)
	require.Len(t, failed, 1)
	require.Equal(t, tooLarge.UUID, failed[0].UUID)
	requireDelivered(t, []*writer{wr}, c.await(t, len(wr.sent)))
}

func TestKafka_LosesNothing_WhenItIsStoppedAndStarted(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("it starts a Kafka of its own")
	}
	server := kafkatest.Start(t)
	w := newWorld(t, kafkaBroker{[]string{server.Address}, 1})
	w.forward(t)
	writers, wait := w.publishing(t, 50, 10*time.Millisecond)
	published := func() (n int) {
		err := w.pool.QueryRow(t.Context(), "SELECT count(*) FROM "+w.schema+".outbox_archive").Scan(&n)
		require.NoError(t, err)
		return n
	}
	require.Eventually(t, func() bool { return published() > 50 }, patience, 10*time.Millisecond)
	server.Stop(t, "TERM")
	wait()
	later, wait := w.publishing(t, 50, 0) // with the same keys
	wait()
	writers = append(writers, later...)
	require.Less(t, published(), len(writers)*50)
	server.Start(t)
	duplicates := requireDelivered(t, writers, w.consume(t).await(t, len(writers)*50))
	require.Zero(t, w.retries(t))
	t.Logf("%d duplicates", duplicates)
}
