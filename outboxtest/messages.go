package outboxtest

import (
	"context"
	"errors"
	"math"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/components/delay"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/watermill-outbox/outbox"
)

// Messages returns the messages of a topic, or of all topics if topic is empty, that are in the outbox and not yet
// forwarded, in the order in which they were saved. It leaves them there and claims none.
//
// With a transaction in tx (of the type that the store's Publisher takes) it returns what the world would see if that
// committed now; with a nil tx, what is committed. So a test need not commit, nor wait for anything.
//
// The messages are as they were published, with their UUID, payload and metadata, and the key that [outbox.Key] tells.
// Of a delay, the metadata hold the time under delay.DelayedUntilKey. Their contexts are empty. They are copies; what
// the test does to their metadata does not reach the outbox.
//
// The test fails if the outbox cannot be read, or if the store lacks this method, which all of this module have:
//
//	Pending(ctx context.Context, tx any, limit int) ([]outbox.Message, error)
//
// Like tb.FailNow, Messages must be called by the test's own goroutine.
func Messages(tb testing.TB, store outbox.Store, tx any, topic string) []*message.Message {
	tb.Helper()
	s, ok := store.(interface {
		Pending(ctx context.Context, tx any, limit int) ([]outbox.Message, error)
	})
	if !ok {
		tb.Fatalf("outboxtest.Messages: a %T cannot tell what is pending: give it a method "+
			"Pending(ctx context.Context, tx any, limit int) ([]outbox.Message, error)", store)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience) // not the test's, which has ended in a Cleanup
	defer cancel()
	rows, err := s.Pending(ctx, tx, math.MaxInt32)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		tb.Fatalf("outboxtest.Messages: %v; if the test has a transaction open on the only connection, pass that", err)
	case err != nil:
		tb.Fatalf("outboxtest.Messages: %v", err)
	}
	var msgs []*message.Message
	for i := range rows {
		row := &rows[i]
		if row.Status == outbox.StatusFailed {
			tb.Fatalf("outboxtest.Messages: the message with id %s in the outbox is damaged: %s", row.ID, row.LastError)
		}
		if topic == "" || row.Topic == topic {
			msgs = append(msgs, asPublished(row))
		}
	}
	return msgs
}

func asPublished(row *outbox.Message) *message.Message {
	msg := row.Watermill()
	if row.Retries == 0 && !row.AvailableAt.IsZero() { // otherwise it is the time of the next attempt
		msg.Metadata.Set(delay.DelayedUntilKey, row.AvailableAt.UTC().Format(time.RFC3339))
	}
	return msg
}
