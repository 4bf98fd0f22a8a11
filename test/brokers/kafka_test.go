package brokers_test

import (
	"cmp"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
)

type kafkaBroker struct {
	addresses  []string
	partitions int32 // of each topic
}

func newKafka(testing.TB) broker {
	return kafkaBroker{strings.Split(address("WATERMILL_TEST_KAFKA_BROKERS", "127.0.0.1:19092"), ","), partitions}
}

const partitions = 8

// inOnePart has topics that come back whole after an outage. sarama leaves each partition alone for ten seconds after it has
// failed, so that they come back one after another, and attempts on those that are still away count: what ARCHITECTURE.md
// names as not there yet.
func inOnePart(b broker) broker {
	if k, ok := b.(kafkaBroker); ok {
		k.partitions = 1
		return k
	}
	return b
}

func (k kafkaBroker) Publisher(t testing.TB, net *network) message.Publisher {
	t.Helper()
	config := producerConfig()
	config.Net.Proxy.Enable = true
	config.Net.Proxy.Dialer = net
	publisher, err := newKafkaPublisher(k.addresses, config)
	require.NoError(t, err, "no Kafka: run `make services`, or name one in WATERMILL_TEST_KAFKA_BROKERS")
	return publisher
}

func newKafkaPublisher(brokers []string, config *sarama.Config) (message.Publisher, error) {
	return kafka.NewPublisher(kafka.PublisherConfig{
		Brokers:               brokers,
		Marshaler:             kafka.NewWithPartitioningMarshaler(outbox.PartitionKey),
		OverwriteSaramaConfig: config,
	}, quiet)
}

// docs:begin kafka
func producerConfig() *sarama.Config {
	config := kafka.DefaultSaramaSyncPublisherConfig()
	// All in-sync replicas have a message before Publish returns; by default it is the leader only.
	config.Producer.RequiredAcks = sarama.WaitForAll
	// The outbox tries again, and knows which messages must wait meanwhile. By default a Publish call to a topic that
	// does not exist takes six seconds.
	config.Producer.Retry.Max = 3
	config.Metadata.Retry.Max = 1
	config.Metadata.Retry.Backoff = 100 * time.Millisecond
	return config
}

// docs:end kafka

func (k kafkaBroker) Subscriber(t testing.TB, group string) message.Subscriber {
	t.Helper()
	config := kafka.DefaultSaramaSubscriberConfig()
	config.Consumer.Offsets.Initial = sarama.OffsetOldest
	config.Consumer.Group.Heartbeat.Interval = 500 * time.Millisecond
	config.Consumer.Group.Rebalance.Timeout = 3 * time.Second
	subscriber, err := kafka.NewSubscriber(kafka.SubscriberConfig{
		Brokers:                k.addresses,
		Unmarshaler:            kafka.DefaultMarshaler{},
		OverwriteSaramaConfig:  config,
		ConsumerGroup:          cmp.Or(group, "group"),
		InitializeTopicDetails: &sarama.TopicDetail{NumPartitions: k.partitions, ReplicationFactor: 1},
	}, quiet)
	require.NoError(t, err)
	return subscriber
}

func (k kafkaBroker) CreateTopic(t testing.TB, topic string) {
	t.Helper()
	k.createTopic(t, topic, nil)
}

func (k kafkaBroker) createTopic(t testing.TB, topic string, settings map[string]*string) {
	t.Helper()
	admin, err := sarama.NewClusterAdmin(k.addresses, sarama.NewConfig())
	require.NoError(t, err)
	defer admin.Close() //nolint:errcheck // the topic is there, or not
	require.NoError(t, admin.CreateTopic(topic,
		&sarama.TopicDetail{NumPartitions: k.partitions, ReplicationFactor: 1, ConfigEntries: settings}, false))
}

func (kafkaBroker) Refuse(msg *message.Message) bool {
	msg.Payload = make([]byte, 2<<20) // sarama's MaxMessageBytes is 1 MiB
	return true
}

func (kafkaBroker) TellsWhatIsPermanent() bool { return true }

func (kafkaBroker) IsPermanent(err error) bool { return isPermanentKafka(err) }

// docs:begin kafka-permanent

// isPermanentKafka knows what the client refuses by itself. When the broker finds a message too large, it refuses the
// whole batch that sarama has put it into, and which of them was too large is not known.
func isPermanentKafka(err error) bool {
	var tooLarge sarama.ConfigurationError
	return errors.As(err, &tooLarge) || errors.Is(err, sarama.ErrInvalidTopic)
}

// docs:end kafka-permanent

func (kafkaBroker) Features() tests.Features {
	return tests.Features{ConsumerGroups: true, GuaranteedOrder: true, Persistent: true}
}
