package after

import (
	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"
)

var logger = watermill.NewSlogLogger(nil)

// NewKafkaPublisher returns the publisher that the Forwarder publishes to.
//
// docs:begin kafka
func NewKafkaPublisher(brokers []string) (message.Publisher, error) {
	config := kafka.DefaultSaramaSyncPublisherConfig()
	config.Producer.RequiredAcks = sarama.WaitForAll // all in-sync replicas have it, and not the leader only
	return kafka.NewPublisher(kafka.PublisherConfig{
		Brokers:               brokers,
		Marshaler:             kafka.NewWithPartitioningMarshaler(partitionKey),
		OverwriteSaramaConfig: config,
	}, logger)
}

// partitionKey has all messages of a customer go to one partition, where they stay in order.
func partitionKey(_ string, msg *message.Message) (string, error) {
	return msg.Metadata.Get("customer_id"), nil
}

// docs:end kafka
