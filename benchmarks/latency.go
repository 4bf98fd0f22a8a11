package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/watermill-outbox/outbox/benchmarks/peer"
	"github.com/watermill-outbox/outbox/benchmarks/result"
)

// latency is a scenario with a steady load, in which the time counts from when Commit has returned until Kafka has
// written the message to its log.
type latency struct {
	publisher string // kafka, or noop, with which no latencies are told
	perSecond int
	perCommit int // messages in a transaction
	lasts     time.Duration
	shape     peer.Shape
}

const (
	// settling is for how long the load runs before it counts.
	settling = time.Second
	// tolerance is how much earlier than its commit's return a message may be in Kafka: a client that has lost its turn
	// on a busy machine hears of its commit late.
	tolerance = time.Second
)

func (l latency) run(ctx context.Context, b *bench, p peer.Peer, o peer.Outbox, run *result.Run) (err error) {
	if err := b.clean(ctx, o); err != nil {
		return err
	}
	relay, err := b.startRelay(ctx, p, o, l.publisher)
	if err != nil {
		return err
	}
	relays := []*relayProcess{relay}
	counting := b.counter(relays, l.publisher == "kafka")
	defer func() { err = errors.Join(err, relay.stop(ctx)) }()
	if err := o.Commit(ctx, l.shape.Message(0)); err != nil { // connections are made
		return err
	}
	begin, err := b.await(ctx, counting, relays, 1)
	if err != nil {
		return err
	}
	if err := b.topic.Empty(ctx); err != nil {
		return err
	}
	committed, err := l.load(ctx, o)
	if err != nil {
		return err
	}
	if l.publisher == "kafka" {
		begin.n = 0 // it was emptied
	}
	end, err := b.await(ctx, counting, relays, begin.n+len(committed))
	if err != nil {
		return err
	}
	run.Metrics = end.since(begin)
	if l.publisher != "kafka" {
		return nil
	}
	return writtenAfter(ctx, b, committed, l.settled(), run)
}

// settled is the number of the first message that counts.
func (l latency) settled() int { return int(settling.Seconds() * float64(l.perSecond)) }

// load commits at the rate, by a schedule that does not wait for who is late, and returns when each message was committed.
func (l latency) load(ctx context.Context, o peer.Outbox) ([]time.Time, error) {
	every := time.Second * time.Duration(l.perCommit) / time.Duration(l.perSecond)
	commits := int((settling + l.lasts) / every)
	committed := make([]time.Time, commits*l.perCommit)
	err := onSchedule(ctx, time.Now(), every, commits, func(i int) error {
		msgs := make([]peer.Message, l.perCommit)
		for j := range msgs {
			msgs[j] = l.shape.Message(i*l.perCommit + j)
		}
		if err := o.Commit(ctx, msgs...); err != nil {
			return err
		}
		now := time.Now()
		for j := range msgs {
			committed[i*l.perCommit+j] = now
		}
		return nil
	})
	return committed, err
}

// writtenAfter measures how long after its commit each message was first written, from the first that counts. The
// broker's clock tells whole milliseconds, so half of one is added.
func writtenAfter(ctx context.Context, b *bench, committed []time.Time, from int, run *result.Run) error {
	histogram := newHistogram()
	duplicates, err := b.eachFirst(ctx, len(committed), func(n int, written time.Time) error {
		took := written.Add(time.Millisecond / 2).Sub(committed[n])
		if took < -tolerance { // a commit is told to the client a moment after it is visible
			return fmt.Errorf("message %d was written %v before its commit had returned: do Kafka and this machine have one clock?", n, -took)
		}
		if n >= from {
			record(histogram, took)
		}
		return nil
	})
	if err != nil {
		return err
	}
	run.Metrics["duplicates"] = float64(duplicates)
	return tell(histogram, run)
}

// eachFirst calls a function with each of n messages, and when it was first written, and returns how many of them were
// written again. It is an error if one is missing, which the count alone would not tell, or was never committed.
func (b *bench) eachFirst(ctx context.Context, n int, first func(i int, written time.Time) error) (duplicates int, err error) {
	seen := make([]bool, n)
	err = b.topic.Each(ctx, func(payload []byte, written time.Time) error {
		i, err := peer.NumberOf(payload)
		switch {
		case err != nil:
			return err
		case i >= n:
			return fmt.Errorf("message %d of %d was never committed", i, n)
		case seen[i]:
			duplicates++
			return nil
		}
		seen[i] = true
		return first(i, written)
	})
	if lost := slices.Index(seen, false); err == nil && lost >= 0 {
		return duplicates, fmt.Errorf("message %d of %d was lost", lost, n)
	}
	return duplicates, err
}

// newHistogram is of microseconds, up to ten minutes, with three digits.
func newHistogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(1, (10 * time.Minute).Microseconds(), 3)
}

func record(h *hdrhistogram.Histogram, d time.Duration) {
	_ = h.RecordValue(min(max(d.Microseconds(), 1), h.HighestTrackableValue())) // it is within the bounds
}

// tell puts a histogram and its percentiles into the result.
func tell(h *hdrhistogram.Histogram, run *result.Run) error {
	for metric, percentile := range map[string]float64{"p50_ms": 50, "p90_ms": 90, "p99_ms": 99, "p999_ms": 99.9, "max_ms": 100} {
		run.Metrics[metric] = float64(h.ValueAtPercentile(percentile)) / 1000
	}
	encoded, err := h.Encode(hdrhistogram.V2CompressedEncodingCookieBase)
	if err != nil {
		return err
	}
	run.Latencies = string(encoded)
	if _, err := base64.StdEncoding.DecodeString(run.Latencies); err != nil {
		return fmt.Errorf("the histogram's encoding: %w", err)
	}
	return nil
}
