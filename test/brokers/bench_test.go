package brokers_test

import (
	"bytes"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/internal/abtest"
)

const (
	benchConcurrency = 256
	benchKeys        = 10_000
	benchPayload     = 256
)

// Target: 0.7. PostgreSQL, Kafka and the relay share the cores; the baseline has them for Kafka and its own client.
func BenchmarkKafka_AgainstPublishingToItDirectly(b *testing.B) {
	const n = 200_000
	w := newWorld(b, newKafka(b))
	abtest.Compare(b, n, 0.7, func(b *testing.B) time.Duration {
		w.fill(b, n)
		f, err := outbox.NewForwarder(w.store, w.publisher, outbox.WithConcurrency(benchConcurrency),
			outbox.WithBatchSize(1000), outbox.WithLogger(watermill.NopLogger{}))
		require.NoError(b, err)
		begun := time.Now()
		published, err := f.Drain(b.Context())
		require.NoError(b, err)
		require.Equal(b, n, published)
		return time.Since(begun)
	}, func(b *testing.B) time.Duration {
		return w.publishDirectly(b, n)
	})
}

// fill commits a backlog of n messages over the keys.
func (w *world) fill(b *testing.B, n int) {
	b.Helper()
	_, err := w.pool.Exec(b.Context(), `
		INSERT INTO `+w.schema+`.outbox_messages (topic, key, payload)
		SELECT $1, 'order-' || (i % $2::int), convert_to(repeat('x', $3::int), 'UTF8') FROM generate_series(1, $4::int) i`,
		w.topic, benchKeys, benchPayload, n)
	require.NoError(b, err)
}

// publishDirectly publishes as many such messages, by as many goroutines as the Forwarder has workers.
func (w *world) publishDirectly(b *testing.B, n int) time.Duration {
	b.Helper()
	payload := bytes.Repeat([]byte("x"), benchPayload)
	var next, failed atomic.Int64
	var all sync.WaitGroup
	begun := time.Now()
	for range benchConcurrency {
		all.Go(func() {
			for i := next.Add(1); i <= int64(n); i = next.Add(1) {
				msg := message.NewMessage(watermill.NewUUID(), payload)
				outbox.SetKey(msg, fmt.Sprintf("order-%d", i%benchKeys))
				if w.publisher.Publish(w.topic, msg) != nil {
					failed.Add(1)
				}
			}
		})
	}
	all.Wait()
	took := time.Since(begun)
	require.Zero(b, failed.Load())
	return took
}

// What docs/brokers.md says of concurrency.
func BenchmarkBrokers(b *testing.B) {
	for name, newBroker := range brokers {
		for _, concurrency := range []int{1, 16, 64, 256, 1024} {
			b.Run(fmt.Sprintf("%s/concurrency=%d", name, concurrency), func(b *testing.B) {
				n := 5_000 * min(concurrency, 16) // some seconds
				var took time.Duration
				for b.Loop() {
					w := newWorld(b, newBroker(b))
					w.fill(b, n)
					f, err := outbox.NewForwarder(w.store, w.publisher, outbox.WithConcurrency(concurrency),
						outbox.WithBatchSize(1000), outbox.WithLogger(watermill.NopLogger{}))
					require.NoError(b, err)
					begun := time.Now()
					published, err := f.Drain(b.Context())
					took += time.Since(begun)
					require.NoError(b, err)
					require.Equal(b, n, published)
				}
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(float64(n*b.N)/took.Seconds(), "msg/s")
			})
		}
	}
}
