package measure_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/watermill-outbox/outbox/benchmarks/measure"
	"github.com/watermill-outbox/outbox/benchmarks/peer"
)

// What was read is deleted while it goes on, and nothing that was not.
func TestTopic_IsFollowedAndTrimmedWhileRecordsCome(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	topic, err := measure.NewTopic(ctx, peer.KafkaBrokers(), fmt.Sprintf("measure-%d", time.Now().UnixNano()), 2)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, topic.Close(context.Background())) })
	require.NoError(t, topic.TakeLittleDisk(ctx))
	client, err := kgo.NewClient(kgo.SeedBrokers(peer.KafkaBrokers()...), kgo.DefaultProduceTopic(topic.Name))
	require.NoError(t, err)
	defer client.Close()

	came := make(chan string)
	following, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() {
		ended <- topic.Follow(following, func(value []byte, written time.Time) error {
			if time.Since(written) > time.Minute {
				return fmt.Errorf("%s was written at %v", value, written)
			}
			came <- string(value)
			return nil
		})
	}()
	const rounds, each = 3, 20
	for round := range rounds {
		for i := range each {
			record := &kgo.Record{Value: fmt.Appendf(nil, "%d.%d", round, i), Partition: int32(i % 2)}
			require.NoError(t, client.ProduceSync(ctx, record).FirstErr())
		}
		read := map[string]bool{}
		for range each {
			select {
			case value := <-came:
				read[value] = true
			case err := <-ended:
				t.Fatal("followed no longer:", err)
			}
		}
		require.Len(t, read, each)
		require.NoError(t, topic.Trim(ctx))
		count, err := topic.Count(ctx)
		require.NoError(t, err)
		require.Equal(t, (round+1)*each, count)
	}
	stop()
	require.NoError(t, <-ended)
	require.NoError(t, topic.Trim(ctx))
	admin := kadm.NewClient(client)
	starts, err := admin.ListStartOffsets(ctx, topic.Name)
	require.NoError(t, err)
	ends, err := admin.ListEndOffsets(ctx, topic.Name)
	require.NoError(t, err)
	require.Equal(t, ends.Offsets(), starts.Offsets())
}
