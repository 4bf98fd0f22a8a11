package outbox_test

import (
	"context"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/internal/abtest"
)

// blockedTarget is what others must be left with. It is far from what is measured, which is short, and noisy.
const blockedTarget = 0.5

// What a key that fails or hangs for ever, with 100,000 messages behind it, costs others.
func BenchmarkForwarder_OverSQLite_WithABlockedKey_AgainstWithoutIt(b *testing.B) {
	for name, block := range waysToBlock {
		b.Run(name, func(b *testing.B) {
			free, _ := benchSQLite(b)
			blocked, _ := benchSQLite(b)
			saveBlocked(b, blocked, 100_000)
			abtest.Compare(b, healthyKeys*healthyPerKey, blockedTarget, func(b *testing.B) time.Duration {
				end := make(chan struct{})
				br, _, first := blockedBroker(block, end)
				return publishHealthy(b, blocked, br, first, end)
			}, func(b *testing.B) time.Duration {
				return publishHealthy(b, free, newBroker(), nil, make(chan struct{}))
			})
		})
	}
}

// publishHealthy returns how long it takes, once first is closed, to publish messages of many keys.
func publishHealthy(b *testing.B, store outbox.LeasedStore, br *broker, first <-chan struct{}, end chan struct{}) time.Duration {
	b.Helper()
	f, err := outbox.NewForwarder(store, br, append(blockedOptions, outbox.WithLogger(watermill.NopLogger{}))...)
	require.NoError(b, err)
	ended := make(chan error, 1)
	go func() { ended <- f.Run(context.Background()) }()
	<-f.Running()
	if first != nil {
		<-first
	}
	require.NoError(b, store.Save(b.Context(), nil, outbox.Message{Topic: "topic"}))
	<-br.arrived // what is before it has been read
	begun := time.Now()
	saveHealthy(b, store)
	for range healthyKeys * healthyPerKey {
		<-br.arrived
	}
	took := time.Since(begun)
	close(end)
	require.NoError(b, f.Close())
	require.NoError(b, <-ended)
	return took
}
