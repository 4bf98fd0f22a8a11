package measure

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Topic is a topic of Kafka's, whose records have the time at which the broker has written them.
type Topic struct {
	Name    string
	brokers []string
	client  *kgo.Client
	admin   *kadm.Client
	begin   kadm.ListedOffsets

	mu   sync.Mutex
	read kadm.Offsets // where Follow is; guarded by mu
}

// NewTopic creates a topic, or takes one that is there. What it has created is gone when it returns an error.
func NewTopic(ctx context.Context, brokers []string, name string, partitions int32) (*Topic, error) {
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		return nil, err
	}
	t := &Topic{Name: name, brokers: brokers, client: client, admin: kadm.NewClient(client)}
	byBroker := "LogAppendTime"
	_, err = t.admin.CreateTopic(ctx, partitions, 1, map[string]*string{"message.timestamp.type": &byBroker}, name)
	created := err == nil
	if err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
		client.Close()
		return nil, fmt.Errorf("creating topic %s in Kafka on %v: %w", name, brokers, err)
	}
	if err := t.awaitCreated(ctx); err != nil {
		if created {
			undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
			defer cancel()
			return nil, errors.Join(err, t.Close(undo))
		}
		client.Close()
		return nil, err
	}
	return t, nil
}

// awaitCreated waits for as long as a broker has created a topic and does not know it yet.
func (t *Topic) awaitCreated(ctx context.Context) error {
	for {
		err := t.Empty(ctx)
		if err == nil || !errors.Is(err, kerr.UnknownTopicOrPartition) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Empty deletes what is in the topic, and begins to count anew.
func (t *Topic) Empty(ctx context.Context) error {
	ends, err := t.ends(ctx)
	if err != nil {
		return err
	}
	if _, err := t.admin.DeleteRecords(ctx, ends.Offsets()); err != nil {
		return err
	}
	t.begin = ends
	t.mu.Lock()
	defer t.mu.Unlock()
	t.read = kadm.Offsets{}
	return nil
}

func (t *Topic) ends(ctx context.Context) (kadm.ListedOffsets, error) {
	ends, err := t.admin.ListEndOffsets(ctx, t.Name)
	if err == nil {
		err = ends.Error()
	}
	return ends, err
}

// Count returns how many records have come since the topic was emptied.
func (t *Topic) Count(ctx context.Context) (int, error) {
	ends, err := t.ends(ctx)
	if err != nil {
		return 0, err
	}
	var n int64
	ends.Each(func(end kadm.ListedOffset) {
		if begin, ok := t.begin.Lookup(end.Topic, end.Partition); ok {
			n += end.Offset - begin.Offset
		}
	})
	return int(n), nil
}

// Each calls a function with each of the records that have come since the topic was emptied, in the order of their
// partitions, and with the time when the broker wrote it, which has whole milliseconds and is at most one too early.
func (t *Topic) Each(ctx context.Context, each func(value []byte, written time.Time) error) error {
	n, err := t.Count(ctx)
	if err != nil {
		return err
	}
	reader, err := kgo.NewClient(kgo.SeedBrokers(t.brokers...), kgo.ConsumePartitions(t.begin.KOffsets()))
	if err != nil {
		return err
	}
	defer reader.Close()
	for n > 0 {
		fetches := reader.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return err
		}
		for _, record := range fetches.Records() {
			if err := each(record.Value, record.Timestamp); err != nil {
				return err
			}
			n--
		}
	}
	return nil
}

// Version returns the version of Kafka that the brokers' answers are those of.
func (t *Topic) Version(ctx context.Context) (string, error) {
	versions, err := t.admin.ApiVersions(ctx)
	if err != nil {
		return "", err
	}
	for _, v := range versions.Sorted() {
		return v.VersionGuess(), v.Err
	}
	return "", errors.New("no broker has answered")
}

// Close deletes the topic.
func (t *Topic) Close(ctx context.Context) error {
	defer t.client.Close()
	_, err := t.admin.DeleteTopic(ctx, t.Name)
	return err
}
