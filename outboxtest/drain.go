package outboxtest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/watermill-outbox/outbox"
)

// Drain publishes what is pending in the outbox to publisher, one message at a time, until nothing is left, and returns
// how many messages were published. It is [outbox.Forwarder.Drain] for tests: it fails the test where that returns an
// error, and when a Publish call hangs.
//
// With a Go channels Pub/Sub that has BlockPublishUntilSubscriberAck, each message has been handled when Drain returns,
// and so have those that the handlers published through the outbox meanwhile: a flow of several steps runs from end to
// end, without a Forwarder in the background and without waiting for anything. Subscribe, or start the router and wait
// for Running, first.
//
// Messages that are delayed stay in the outbox; with store/memory, Advance makes them due. No Forwarder may be running
// over the store at the same time. Like tb.FailNow, Drain must be called by the test's own goroutine.
func Drain(tb testing.TB, store outbox.Store, publisher message.Publisher) int {
	tb.Helper()
	forwarder, err := outbox.NewForwarder(store, publisher,
		outbox.WithConcurrency(1), // a test should go the same way each time
		outbox.WithCloseTimeout(time.Second),
		outbox.WithLogger(watermill.NopLogger{}), // the test fails with what would be logged
	)
	if err != nil {
		tb.Fatalf("outboxtest.Drain: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience) // not the test's, which has ended in a Cleanup
	defer cancel()
	n, err := forwarder.Drain(ctx)
	switch {
	case errors.Is(err, outbox.ErrCloseTimeout):
		tb.Fatalf("outboxtest.Drain: after %d messages, a Publish call did not return within %v; with Go channels "+
			"that wait for the subscriber, see whether its handler returns an error each time: %v", n, patience, err)
	case err != nil:
		tb.Fatalf("outboxtest.Drain: after %d messages: %v", n, err)
	}
	return n
}
