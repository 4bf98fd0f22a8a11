package outbox_test

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
)

// stacked is an error like those of pkg/errors, which Watermill's publishers return.
type stacked struct{}

func (stacked) Error() string { return "refused" }

func (stacked) Format(f fmt.State, verb rune) {
	_, _ = io.WriteString(f, "refused")
	if verb == 'v' && f.Flag('+') {
		_, _ = io.WriteString(f, "\n/home/somebody/publisher.go:151")
	}
}

func TestForwarder_LogsErrorsOfThePublisher_WithoutTheirStacks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		store, b := newMemory(t), newBroker()
		b.answer = func(_ string, msg *message.Message) error {
			if string(msg.Payload) == "poison" {
				return stacked{}
			}
			return nil
		}
		logger := watermill.NewSlogLogger(slog.New(slog.NewTextHandler(&log, nil)))
		f := run(t, store, b, outbox.WithLogger(logger), outbox.WithMaxRetries(2))
		publish(t, store, "topic", newMessage("poison", "a"))
		for len(failed(t, store)) == 0 { // others show that the topic works
			publish(t, store, "topic", newMessage("other", "b"))
			time.Sleep(100 * time.Millisecond)
		}
		require.NoError(t, f.Close())
		require.Contains(t, log.String(), "set aside")
		require.Contains(t, log.String(), "refused")
		require.NotContains(t, log.String(), "publisher.go")
	})
}
