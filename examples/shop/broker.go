package main

import (
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"
)

// newBroker connects to the broker, and is the only place that knows which one that is: for Kafka, NATS or AMQP return
// the publisher and the subscriber of their Watermill packages.
//
// These are Go channels, which stay within the process. They hold nothing for those who are not there, which is why the
// handlers begin before the Forwarder and end after it.
func newBroker() (message.Publisher, message.Subscriber, error) {
	// The Forwarder deletes a message when Publish has returned, so Publish must not return before the message is safe:
	// for Go channels, handled.
	config := gochannel.Config{BlockPublishUntilSubscriberAck: true}
	channels := gochannel.NewGoChannel(config, watermill.NewSlogLogger(nil))
	return channels, channels, nil
}
