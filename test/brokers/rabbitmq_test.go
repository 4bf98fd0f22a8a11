// The client of watermill-amqp v3.0.2 has a data race of its own when a connection ends: ConnectionWrapper.connected is
// replaced without its lock.
//go:build !race

package brokers_test

import (
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill-amqp/v3/pkg/amqp"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"
	amqp091 "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"
)

type rabbitMQ struct{ uri string }

func init() { brokers["RabbitMQ"] = newRabbitMQ } //nolint:gochecknoinits // this file is not always there

func newRabbitMQ(testing.TB) broker {
	return rabbitMQ{address("WATERMILL_TEST_AMQP_URI", "amqp://guest:guest@127.0.0.1:25672/")}
}

func (r rabbitMQ) Publisher(t testing.TB, net *network) message.Publisher {
	t.Helper()
	config := amqpPublisherConfig(r.uri)
	config.Connection.AmqpConfig = &amqp091.Config{Dial: net.Dial}
	publisher, err := amqp.NewPublisher(config, quiet)
	require.NoError(t, err, "no RabbitMQ: run `make services`, or name one in WATERMILL_TEST_AMQP_URI")
	return publisher
}

// docs:begin rabbitmq
func amqpPublisherConfig(uri string) amqp.Config {
	config := amqp.NewDurablePubSubConfig(uri, nil)
	config.Publish.ConfirmDelivery = true // without it Publish returns before the broker has the message
	config.Connection.Reconnect = &amqp.ReconnectConfig{
		BackoffInitialInterval: 200 * time.Millisecond, BackoffMultiplier: 1.5, BackoffMaxInterval: 5 * time.Second,
	}
	return config
}

// docs:end rabbitmq

func (r rabbitMQ) Subscriber(t testing.TB, group string) message.Subscriber {
	t.Helper()
	subscriber, err := amqp.NewSubscriber(amqp.NewDurablePubSubConfig(r.uri, amqp.GenerateQueueNameTopicNameWithSuffix(group)), quiet)
	require.NoError(t, err)
	return subscriber
}

// CreateTopic binds a queue: the publisher declares the exchange, which keeps nothing by itself.
func (r rabbitMQ) CreateTopic(t testing.TB, topic string) {
	t.Helper()
	subscriber := r.Subscriber(t, "kept")
	require.NoError(t, subscriber.(message.SubscribeInitializer).SubscribeInitialize(topic))
	require.NoError(t, subscriber.Close())
}

func (rabbitMQ) Refuse(msg *message.Message) bool {
	return false // up to 128 MiB it takes everything
}

func (rabbitMQ) TellsWhatIsPermanent() bool { return false }

func (rabbitMQ) IsPermanent(error) bool { return false }

func (rabbitMQ) Features() tests.Features {
	return tests.Features{
		ConsumerGroups:                      true,
		GuaranteedOrder:                     true,
		GuaranteedOrderWithSingleSubscriber: true,
		Persistent:                          true,
	}
}
