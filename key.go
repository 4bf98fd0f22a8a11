package outbox

import "github.com/ThreeDotsLabs/watermill/message"

// reservedPrefix begins every metadata key of this package.
const reservedPrefix = "_outbox_"

// keyMetadata carries a message's key: from SetKey to the Publisher, and from the Forwarder to the broker and its
// consumers, so that a message they publish on keeps its key.
const keyMetadata = reservedPrefix + "key"

// SetKey gives msg a key. Messages of one key reach the broker in the order in which they were published to the
// outbox, across topics; see P4 of the promises in the README. Use the id of what the message is about: an order, an
// account. An empty key takes the key away.
//
// The key travels as metadata "_outbox_key". Call SetKey before Publish, and not at the same time.
func SetKey(msg *message.Message, key string) {
	if key == "" {
		delete(msg.Metadata, keyMetadata)
		return
	}
	if msg.Metadata == nil {
		msg.Metadata = make(message.Metadata, 1)
	}
	msg.Metadata.Set(keyMetadata, key)
}

// Key returns the message's key, empty if it has none: of one to be published, and of one that a consumer received.
func Key(msg *message.Message) string { return msg.Metadata.Get(keyMetadata) }

// PartitionKey returns the message's key, or its UUID if it has none, and never an error. It fits
// kafka.NewWithPartitioningMarshaler of watermill-kafka: messages of one key then go to one partition, and those
// without a key are spread (an empty string would send them all to the same one).
func PartitionKey(_ string, msg *message.Message) (string, error) {
	if key := Key(msg); key != "" {
		return key, nil
	}
	return msg.UUID, nil
}

// totalOrderKey is the key that WithTotalOrder gives to messages without one.
const totalOrderKey = reservedPrefix + "total"
