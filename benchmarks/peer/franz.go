package peer

import (
	"context"

	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kgo"
)

// OursOverFranz is this project with a publisher of forty lines over franz-go, in the place of watermill-kafka's.
var OursOverFranz = Peer{
	Name:      "outbox over franz-go",
	About:     "this project, with a publisher over franz-go instead of watermill-kafka: `ProduceSync` with what each Publish call has, `acks=all`, idempotent",
	New:       Ours.New,
	Publisher: newFranzPublisher,
}

// newFranzClient has the settings of the other producers: all in-sync replicas acknowledge, nothing is compressed.
func newFranzClient(opts ...kgo.Opt) (*kgo.Client, error) {
	return kgo.NewClient(append(opts, kgo.SeedBrokers(KafkaBrokers()...), kgo.ProducerBatchCompression(kgo.NoCompression()))...)
}

// franzPublisher is a message.Publisher. It batches what is published at once, as sarama does.
type franzPublisher struct{ client *kgo.Client }

func newFranzPublisher() (message.Publisher, error) {
	client, err := newFranzClient(kgo.ProducerLinger(0)) // each call waits for its own, and others gather meanwhile
	return franzPublisher{client}, err
}

func (p franzPublisher) Publish(topic string, msgs ...*message.Message) error {
	records := make([]*kgo.Record, len(msgs))
	for i, msg := range msgs {
		key, err := PartitionKey(topic, msg)
		if err != nil {
			return err
		}
		headers := make([]kgo.RecordHeader, 0, len(msg.Metadata)+1)
		headers = append(headers, kgo.RecordHeader{Key: kafka.UUIDHeaderKey, Value: []byte(msg.UUID)})
		for k, v := range msg.Metadata {
			headers = append(headers, kgo.RecordHeader{Key: k, Value: []byte(v)})
		}
		records[i] = &kgo.Record{Topic: topic, Key: []byte(key), Value: msg.Payload, Headers: headers}
	}
	return p.client.ProduceSync(context.Background(), records...).FirstErr() // the Forwarder reports calls that hang
}

func (p franzPublisher) Close() error {
	p.client.Close()
	return nil
}
