package measure

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Follow calls a function with each record as it comes, from when the topic was emptied until the context ends, as Each
// does with those that are there.
func (t *Topic) Follow(ctx context.Context, each func(value []byte, written time.Time) error) error {
	reader, err := kgo.NewClient(kgo.SeedBrokers(t.brokers...), kgo.ConsumePartitions(t.begin.KOffsets()))
	if err != nil {
		return err
	}
	defer reader.Close()
	for {
		fetches := reader.PollFetches(ctx)
		if ctx.Err() != nil {
			return nil // that is its end
		}
		if err := fetches.Err(); err != nil {
			return fmt.Errorf("reading topic %s: %w", t.Name, err)
		}
		for _, record := range fetches.Records() {
			if err := each(record.Value, record.Timestamp); err != nil {
				return err
			}
		}
		t.followed(fetches)
	}
}

// followed remembers what Trim may delete.
func (t *Topic) followed(fetches kgo.Fetches) {
	t.mu.Lock()
	defer t.mu.Unlock()
	fetches.EachPartition(func(of kgo.FetchTopicPartition) {
		if n := len(of.Records); n > 0 {
			t.read.AddOffset(of.Topic, of.Partition, of.Records[n-1].Offset+1, -1)
		}
	})
}

// Trim deletes what Follow has read. Count goes on counting it.
func (t *Topic) Trim(ctx context.Context) error {
	t.mu.Lock()
	upTo := kadm.Offsets{}
	t.read.Each(upTo.Add)
	t.mu.Unlock()
	if len(upTo) == 0 {
		return nil
	}
	deleted, err := t.admin.DeleteRecords(ctx, upTo)
	if err == nil {
		err = deleted.Error()
	}
	if err != nil {
		return fmt.Errorf("trimming topic %s: %w", t.Name, err)
	}
	return nil
}

// segmentBytes is the least by which what is deleted leaves the disk: 16 MB, where Kafka's default is a gigabyte for each
// partition.
const segmentBytes = "16777216"

// TakeLittleDisk has what is deleted leave the disk soon, since Kafka deletes whole segments only.
func (t *Topic) TakeLittleDisk(ctx context.Context) error {
	size := segmentBytes
	altered, err := t.admin.AlterTopicConfigs(ctx, []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "segment.bytes", Value: &size}}, t.Name)
	for _, topic := range altered {
		if err == nil {
			err = topic.Err
		}
	}
	if err != nil {
		return fmt.Errorf("setting segment.bytes of topic %s: %w", t.Name, err)
	}
	return nil
}
