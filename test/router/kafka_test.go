package router_test

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
)

// partitions of each topic.
const partitions = 4

func brokers() []string {
	if named := os.Getenv("WATERMILL_TEST_KAFKA_BROKERS"); named != "" {
		return strings.Split(named, ",")
	}
	return []string{"127.0.0.1:19092"}
}

func newKafkaPublisher(t testing.TB) message.Publisher {
	t.Helper()
	config := kafka.DefaultSaramaSyncPublisherConfig()
	config.Producer.RequiredAcks = sarama.WaitForAll
	publisher, err := kafka.NewPublisher(kafka.PublisherConfig{
		Brokers:               brokers(),
		Marshaler:             kafka.NewWithPartitioningMarshaler(outbox.PartitionKey),
		OverwriteSaramaConfig: config,
	}, watermill.NopLogger{})
	require.NoError(t, err, "no Kafka: run `make services`, or name one in WATERMILL_TEST_KAFKA_BROKERS")
	t.Cleanup(func() { require.NoError(t, publisher.Close()) })
	return publisher
}

// rebalanceTimeout is how long a consumer group waits for a member that is busy before it goes on without it.
const rebalanceTimeout = 3 * time.Second

// docs:begin subscriber

// newKafkaSubscriber returns a subscriber that begins with the oldest message. Subscribers of one group share the
// messages of a topic, so each handler needs a group of its own.
func newKafkaSubscriber(group string) (message.Subscriber, error) {
	config := kafka.DefaultSaramaSubscriberConfig()
	config.Consumer.Offsets.Initial = sarama.OffsetOldest // the default is the newest
	config.Consumer.Group.Heartbeat.Interval = time.Second
	config.Consumer.Group.Rebalance.Timeout = rebalanceTimeout
	return kafka.NewSubscriber(kafka.SubscriberConfig{
		Brokers:               brokers(),
		Unmarshaler:           kafka.DefaultMarshaler{},
		OverwriteSaramaConfig: config,
		ConsumerGroup:         group,
	}, watermill.NopLogger{})
}

// docs:end subscriber

func createTopics(t testing.TB, topics ...string) {
	t.Helper()
	admin, err := sarama.NewClusterAdmin(brokers(), sarama.NewConfig())
	require.NoError(t, err, "no Kafka: run `make services`, or name one in WATERMILL_TEST_KAFKA_BROKERS")
	defer admin.Close() //nolint:errcheck // the topics are there, or not
	for _, topic := range topics {
		detail := &sarama.TopicDetail{NumPartitions: partitions, ReplicationFactor: 1}
		require.NoError(t, admin.CreateTopic(topic, detail, false))
	}
}
