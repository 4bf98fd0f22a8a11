package brokers_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	watermillnats "github.com/ThreeDotsLabs/watermill-nats/v2/pkg/nats"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"
	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"
)

type natsBroker struct{ url string }

func newNATS(testing.TB) broker {
	return natsBroker{address("WATERMILL_TEST_NATS_URL", "nats://127.0.0.1:24222")}
}

func (n natsBroker) Publisher(t testing.TB, net *network) message.Publisher {
	t.Helper()
	config := natsPublisherConfig(n.url)
	config.NatsOptions = append(config.NatsOptions, nats.SetCustomDialer(net))
	publisher, err := watermillnats.NewPublisher(config, quiet)
	require.NoError(t, err, "no NATS: run `make services`, or name one in WATERMILL_TEST_NATS_URL")
	return checkedSubjects{publisher}
}

// docs:begin nats-subjects

// checkedSubjects refuses topics with white space. nats.go does not, and the server then ends the connection, and with it
// what others are publishing.
type checkedSubjects struct{ message.Publisher }

func (c checkedSubjects) Publish(topic string, msgs ...*message.Message) error {
	if strings.ContainsFunc(topic, func(r rune) bool { return r <= ' ' }) {
		return fmt.Errorf("%q: %w", topic, nats.ErrBadSubject)
	}
	return c.Publisher.Publish(topic, msgs...)
}

// docs:end nats-subjects

// docs:begin nats
func natsPublisherConfig(url string) watermillnats.PublisherConfig {
	return watermillnats.PublisherConfig{
		URL: url,
		NatsOptions: []nats.Option{
			nats.MaxReconnects(-1), // by default the client gives up after two minutes, until the process starts again
			nats.ReconnectWait(200 * time.Millisecond),
			nats.ReconnectBufSize(-1), // by default it keeps 8 MB to send later, for whose acks nobody waits any more
		},
		JetStream: watermillnats.JetStreamConfig{
			TrackMsgId: true, // JetStream drops what comes again within the stream's Duplicates window
			// AutoProvision asks for the stream before each message, and makes streams that are called like topics, which
			// must then have no dots.
			AutoProvision: false,
		},
	}
}

// docs:end nats

func (n natsBroker) Subscriber(t testing.TB, group string) message.Subscriber {
	t.Helper()
	subscriber, err := watermillnats.NewSubscriber(watermillnats.SubscriberConfig{
		URL:              n.url,
		QueueGroupPrefix: group,
		JetStream: watermillnats.JetStreamConfig{
			SubscribeOptions: []nats.SubOpt{nats.DeliverAll(), nats.AckExplicit()},
			DurablePrefix:    group,
			AckAsync:         true,
		},
	}, quiet)
	require.NoError(t, err)
	return subscriber
}

func (n natsBroker) CreateTopic(t testing.TB, topic string) {
	t.Helper()
	conn, err := nats.Connect(n.url)
	require.NoError(t, err)
	defer conn.Close()
	js, err := conn.JetStream()
	require.NoError(t, err)
	_, err = js.AddStream(&nats.StreamConfig{Name: topic, Subjects: []string{topic}})
	require.NoError(t, err)
}

func (natsBroker) Refuse(msg *message.Message) bool {
	msg.Payload = make([]byte, 2<<20) // max_payload is 1 MiB
	return true
}

func (natsBroker) TellsWhatIsPermanent() bool { return true }

func (natsBroker) IsPermanent(err error) bool { return isPermanentNATS(err) }

// docs:begin nats-permanent
func isPermanentNATS(err error) bool {
	return errors.Is(err, nats.ErrMaxPayload) || errors.Is(err, nats.ErrBadSubject)
}

// docs:end nats-permanent

func (natsBroker) Features() tests.Features {
	return tests.Features{
		ConsumerGroups:                      true,
		GuaranteedOrder:                     true,
		GuaranteedOrderWithSingleSubscriber: true,
		Persistent:                          true,
		NewSubscriberReceivesOldMessages:    true,
	}
}

// What the outbox publishes again, JetStream drops, for as long as the stream's Duplicates window.
func TestNATS_KeepsOneOfSeveralMessagesWithOneUUID(t *testing.T) {
	t.Parallel()
	w := newWorld(t, newNATS(t))
	c := w.consume(t)
	w.forward(t)
	uuid := watermill.NewUUID()
	for range 3 {
		require.NoError(t, w.inTx(t.Context(), message.NewMessage(uuid, nil), nil))
	}
	last := message.NewMessage(watermill.NewUUID(), nil)
	require.Eventually(t, func() bool { return w.pending(t) == 0 }, patience, 10*time.Millisecond)
	require.NoError(t, w.inTx(t.Context(), last, nil))
	received := c.await(t, 2)
	require.Len(t, received, 2)
	require.Equal(t, last.UUID, received[1].UUID)
}

func TestNATS_SetsAsideATopicWithWhiteSpace_AndOthersGoOn(t *testing.T) {
	t.Parallel()
	w := newWorld(t, newNATS(t))
	c := w.consume(t)
	w.forward(t)
	bad := *w
	bad.topic = "a topic"
	require.NoError(t, bad.inTx(t.Context(), message.NewMessage(watermill.NewUUID(), nil), nil))
	writers, wait := w.publishing(t, 20, 0)
	wait()
	require.Zero(t, requireDelivered(t, writers, c.await(t, len(writers)*20)))
	require.Eventually(t, func() bool {
		failed, err := w.store.ListFailed(t.Context(), "", 10)
		require.NoError(t, err)
		return len(failed) == 1 && failed[0].Topic == bad.topic
	}, patience, 10*time.Millisecond)
	require.Equal(t, 1, w.retries(t), "of the one that was set aside")
}
