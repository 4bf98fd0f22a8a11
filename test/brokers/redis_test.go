package brokers_test

import (
	"cmp"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-redisstream/pkg/redisstream"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

type redisBroker struct{ address string }

func newRedis(testing.TB) broker {
	return redisBroker{address("WATERMILL_TEST_REDIS_ADDR", "127.0.0.1:26379")}
}

func (r redisBroker) Publisher(t testing.TB, net *network) message.Publisher {
	t.Helper()
	options := redisOptions(r.address)
	options.Dialer = net.DialContext
	client := redis.NewClient(options)
	require.NoError(t, client.Ping(t.Context()).Err(), "no Redis: run `make services`, or name one in WATERMILL_TEST_REDIS_ADDR")
	publisher, err := redisstream.NewPublisher(redisstream.PublisherConfig{Client: client}, quiet)
	require.NoError(t, err)
	return publisher
}

// docs:begin redis
func redisOptions(address string) *redis.Options {
	return &redis.Options{
		Addr: address,
		// By default it sends four times before it tells of an error. The outbox tries again, and only what is due.
		MaxRetries: -1,
	}
}

// docs:end redis

func (r redisBroker) Subscriber(t testing.TB, group string) message.Subscriber {
	t.Helper()
	subscriber, err := redisstream.NewSubscriber(redisstream.SubscriberConfig{
		Client:                        redis.NewClient(&redis.Options{Addr: r.address}),
		Consumer:                      watermill.NewShortUUID(),
		ConsumerGroup:                 cmp.Or(group, "group"),
		BlockTime:                     10 * time.Millisecond,
		ClaimInterval:                 500 * time.Millisecond, // for what a subscriber that has closed did not acknowledge
		MaxIdleTime:                   2 * time.Second,
		DisableIndefiniteInitialBlock: true,
	}, quiet)
	require.NoError(t, err)
	return subscriber
}

func (redisBroker) CreateTopic(testing.TB, string) {} // XADD does

func (redisBroker) Refuse(msg *message.Message) bool {
	msg.Metadata.Set(redisstream.UUIDHeaderKey, "which is the marshaler's own")
	return true
}

func (redisBroker) TellsWhatIsPermanent() bool { return false }

func (redisBroker) IsPermanent(error) bool { return false }

func (redisBroker) Features() tests.Features {
	return tests.Features{
		ConsumerGroups:                      true,
		GuaranteedOrder:                     true,
		GuaranteedOrderWithSingleSubscriber: true,
		Persistent:                          true,
	}
}
