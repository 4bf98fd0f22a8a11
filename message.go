package outbox

import (
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// MessageStatus tells where a message is in its life.
type MessageStatus string

const (
	// StatusPending is a message that waits to be published.
	StatusPending MessageStatus = "pending"
	// StatusProcessing is a message that a relay instance has claimed.
	StatusProcessing MessageStatus = "processing"
	// StatusProcessed is a message that the broker has acknowledged.
	StatusProcessed MessageStatus = "processed"
	// StatusFailed is a message that was set aside: it used up its retries, was refused for good, or cannot be decoded.
	StatusFailed MessageStatus = "failed"
)

// Message is a row of the outbox.
//
// Users of a [Publisher] and a [Forwarder] never see one; it is what a [Store] takes and gives.
type Message struct {
	// ID is the identity of the row. The store assigns it; Save ignores it. That of a claimed message may have a suffix
	// ("7.1") once claims were lost, which tells its claim from earlier ones of the same row, so take IDs as they are.
	// Methods that take the ID of a row take that of a claim of it, too.
	ID string
	// UUID is the Watermill UUID, which consumers deduplicate on. It need not be unique in the outbox:
	// one message may go to two topics. Where it is empty, Save fills one in.
	UUID string
	// Topic is where the message goes: 1 to [MaxTopicLength] bytes.
	Topic string
	// Key orders messages: those of one key are published in the order in which they were saved. At most
	// [MaxKeyLength] bytes. Messages with an empty key have no order.
	Key string
	// Payload is any bytes, or none.
	Payload []byte
	// Headers are the Watermill metadata: valid UTF-8.
	Headers map[string]string
	// Status is set by the store.
	Status MessageStatus
	// Retries is the number of failed attempts that counted.
	Retries int
	// LastError is the error of the last failed attempt that counted.
	LastError string
	// CreatedAt is when the message was saved, by the database's clock.
	CreatedAt time.Time
	// AvailableAt is when the message may be published at the earliest; the zero time means at once.
	AvailableAt time.Time
	// ProcessedAt is when the message was processed or set aside.
	ProcessedAt time.Time
}

// Watermill returns m as a message for a broker: its UUID, payload and headers, which it shares with m, and its key,
// for [PartitionKey] and consumers.
func (m *Message) Watermill() *message.Message {
	msg := message.NewMessage(m.UUID, m.Payload)
	if m.Headers != nil {
		msg.Metadata = m.Headers
	}
	if m.Key != "" {
		SetKey(msg, m.Key)
	}
	return msg
}

// Size is what the message weighs, in bytes, against [WithMaxInFlightBytes] and the maxBytes of Claim: its variable
// parts, and a flat charge for the rest.
func (m *Message) Size() int {
	const overhead = 256
	n := overhead + len(m.Payload) + len(m.UUID) + len(m.Topic) + len(m.Key)
	for k, v := range m.Headers {
		n += len(k) + len(v)
	}
	return n
}
