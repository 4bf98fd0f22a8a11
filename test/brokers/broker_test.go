// Package brokers runs the outbox against the brokers that Watermill's users have.
package brokers_test

import (
	"os"
	"testing"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"
)

// broker is a harness: what the suite has to know of a broker.
type broker interface {
	// Publisher connects through a network, with the settings that docs/brokers.md recommends. The test closes it.
	Publisher(t testing.TB, net *network) message.Publisher
	// Subscriber begins with the oldest message of a topic. Those of one group share the messages; without a name it is the
	// broker's usual group, or none where it can do without.
	Subscriber(t testing.TB, group string) message.Subscriber
	// CreateTopic makes a topic known, where the broker wants that.
	CreateTopic(t testing.TB, topic string)
	// Refuse changes a message so that the broker will never take it; false where it takes everything.
	Refuse(msg *message.Message) bool
	// IsPermanent is what docs/brokers.md recommends for outbox.WithPermanentError.
	IsPermanent(err error) bool
	// TellsWhatIsPermanent is false where that knows none of the errors of a message that is refused.
	TellsWhatIsPermanent() bool
	// Features are those of Watermill's suite.
	Features() tests.Features
}

// brokers has all of them, by the names that the output of the tests shows. RabbitMQ joins where it can be tested.
var brokers = map[string]func(t testing.TB) broker{
	"Kafka":          newKafka,
	"NATS JetStream": newNATS,
	"Redis streams":  newRedis,
	"watermill-sql":  newSQL,
	"Go channels":    newChannels,
}

// address of a server: the one that the environment names, or the one that make services has started.
func address(variable, ours string) string {
	if named := os.Getenv(variable); named != "" {
		return named
	}
	return ours
}

// quiet is the logger of clients, whose errors are the tests' own doing.
var quiet = watermill.NopLogger{}
