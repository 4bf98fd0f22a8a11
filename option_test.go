package outbox_test

import (
	"testing"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
)

// What takes an option heeds it; what would not does not take it.
func TestOptions_AreTakenOnlyByWhatTheyServe(t *testing.T) {
	type serves struct{ forwarder, publisher, deduplicator, cleanup bool }
	of := func(option any) (s serves) {
		_, s.forwarder = option.(outbox.Option)
		_, s.publisher = option.(outbox.PublisherOption)
		_, s.deduplicator = option.(outbox.DeduplicatorOption)
		_, s.cleanup = option.(outbox.CleanupOption)
		return s
	}
	require.Equal(t, serves{forwarder: true, deduplicator: true, cleanup: true}, of(outbox.WithLogger(watermill.NopLogger{})))
	require.Equal(t, serves{forwarder: true, publisher: true, deduplicator: true}, of(outbox.WithObserver(&events{})))
}
