package main

import (
	"errors"
	"strings"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/watermill-outbox/outbox"
)

// This file is all that knows which broker it is that the shop has. For another one see docs/brokers.md.

func newPublisher(kafkas string) (message.Publisher, error) {
	config := kafka.DefaultSaramaSyncPublisherConfig()
	// The Forwarder deletes a message when Publish has returned. By default only the partition's leader has it then.
	config.Producer.RequiredAcks = sarama.WaitForAll
	// The Forwarder tries again by itself. It hears sooner of what fails when sarama does not.
	config.Producer.Retry.Max = 3
	config.Metadata.Retry.Max = 1
	config.Metadata.Retry.Backoff = 100 * time.Millisecond
	return kafka.NewPublisher(kafka.PublisherConfig{
		Brokers:               strings.Split(kafkas, ","),
		Marshaler:             kafka.NewWithPartitioningMarshaler(outbox.PartitionKey), // an order has one partition
		OverwriteSaramaConfig: config,
	}, watermill.NewSlogLogger(nil))
}

// newSubscriber creates the topic where it is missing, which in production it probably is not. Each topic wants a group of
// its own: sarama does not cope with members of one group that have subscribed to different topics when one of those is new.
func newSubscriber(kafkas, group, topic string) (message.Subscriber, error) {
	config := kafka.DefaultSaramaSubscriberConfig()
	config.Consumer.Offsets.Initial = sarama.OffsetOldest // or a group would miss what was there before it
	subscriber, err := kafka.NewSubscriber(kafka.SubscriberConfig{
		Brokers:                strings.Split(kafkas, ","),
		Unmarshaler:            kafka.DefaultMarshaler{},
		OverwriteSaramaConfig:  config,
		ConsumerGroup:          group,
		InitializeTopicDetails: &sarama.TopicDetail{NumPartitions: 8, ReplicationFactor: 1},
	}, watermill.NewSlogLogger(nil))
	if err != nil {
		return nil, err
	}
	return subscriber, subscriber.SubscribeInitialize(topic)
}

// isPermanent tells the Forwarder which errors no further attempt will mend: what sarama refuses before it sends it.
func isPermanent(err error) bool {
	var tooLarge sarama.ConfigurationError
	return errors.As(err, &tooLarge) || errors.Is(err, sarama.ErrInvalidTopic)
}
