package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/watermill-outbox/outbox/benchmarks/peer"
)

// drain is a scenario in which a backlog is waiting when the relays start.
type drain struct {
	publisher string // kafka, noop or slow
	shape     peer.Shape
	// n is how many messages; for peers that are much slower it is less, so that no repetition takes long.
	n         int
	slower    map[string]int
	instances int
	// held is whether somebody's snapshot is held open from before the backlog until it is drained.
	held bool
}

// warm is the share of a backlog that is drained before the clock starts, or warmMost messages: processes have started,
// connections are made.
const (
	warm     = 0.1
	warmMost = 100_000
)

func (d drain) run(ctx context.Context, b *bench, p peer.Peer, o peer.Outbox) (m metrics, err error) {
	n := d.n
	if of, ok := d.slower[p.Name]; ok {
		n = of
	}
	if err := b.clean(ctx, o); err != nil {
		return nil, err
	}
	if d.held {
		tx, err := b.env.Pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
		if err != nil {
			return nil, err
		}
		defer tx.Rollback(ctx) //nolint:errcheck // it was to be held, and nothing else
		if _, err := tx.Exec(ctx, "SELECT count(*) FROM orders"); err != nil {
			return nil, err
		}
	}
	if err := b.fill(ctx, o, peer.Backlog{N: n, Shape: d.shape}); err != nil {
		return nil, fmt.Errorf("filling: %w", err)
	}
	// As autovacuum would, a minute later: where it comes by while a table is being filled, it believes it to be empty.
	if _, err := b.env.Pool.Exec(ctx, "ANALYZE"); err != nil {
		return nil, err
	}
	return b.relayBacklog(ctx, d, p, o, n)
}

// relayBacklog relays n messages that wait, and checks that all of them were published.
func (b *bench) relayBacklog(ctx context.Context, d drain, p peer.Peer, o peer.Outbox, n int) (m metrics, err error) {
	var relays []*relayProcess
	stop := func() (err error) {
		for _, r := range relays {
			err = errors.Join(err, r.stop(ctx))
		}
		relays = nil
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	kafka := d.publisher == "kafka"
	published, files := newBitmap(n), []string{}
	for i := range max(d.instances, 1) {
		var more []string
		if !kafka {
			files = append(files, filepath.Join(b.scratch, fmt.Sprintf("published-%d", i)))
			more = []string{"--messages", strconv.Itoa(n), "--seen", files[i]}
		}
		r, err := b.startRelay(ctx, p, o, d.publisher, more...)
		if err != nil {
			return nil, err
		}
		r.ResetPeak()
		relays = append(relays, r)
	}
	if m, err = b.watch(ctx, relays, kafka, n); err != nil || kafka {
		return m, err
	}
	if err := stop(); err != nil {
		return nil, err
	}
	for _, file := range files {
		if err := published.read(file); err != nil {
			return nil, err
		}
	}
	if found := published.count(); found != n {
		return nil, fmt.Errorf("of %d messages %d were lost", n, n-found)
	}
	return m, nil
}

// fill commits a backlog: by SQL, or as the application does, with many messages in a transaction.
func (b *bench) fill(ctx context.Context, o peer.Outbox, backlog peer.Backlog) error {
	if filler, ok := o.(peer.Filler); ok {
		return filler.Fill(ctx, backlog)
	}
	const batch = 500
	msgs := make([]peer.Message, 0, batch)
	for n := range backlog.N {
		msgs = append(msgs, backlog.Message(n))
		if len(msgs) == batch || n == backlog.N-1 {
			if err := o.Commit(ctx, msgs...); err != nil {
				return err
			}
			msgs = msgs[:0]
		}
	}
	return nil
}

// watch measures from when the warm-up is over until all messages are published.
func (b *bench) watch(ctx context.Context, relays []*relayProcess, kafka bool, n int) (metrics, error) {
	counting := b.counter(relays, kafka)
	begin, err := b.await(ctx, counting, relays, min(int(warm*float64(n)), warmMost))
	if err != nil {
		return nil, err
	}
	millions := []sample{begin}
	for next := 1_000_000; next < n; next += 1_000_000 {
		at, err := b.await(ctx, counting, relays, next)
		if err != nil {
			return nil, err
		}
		millions = append(millions, at)
	}
	end, err := b.await(ctx, counting, relays, n)
	if err != nil {
		return nil, err
	}
	m := end.since(begin)
	m["messages"] = float64(n)
	for _, r := range relays {
		peak, err := r.Peak()
		if err != nil {
			return nil, err
		}
		m["memory_peak_mb"] += peak
	}
	byMillion(append(millions, end), m)
	const stragglers = 100 * time.Millisecond
	time.Sleep(stragglers)
	all, err := counting(ctx)
	if err == nil && kafka {
		_, err = b.eachFirst(ctx, n, func(int, time.Time) error { return nil })
	}
	m["duplicates"] = float64(all - n)
	return m, err
}

// byMillion compares the rates of the millions of a long backlog with that of the first.
func byMillion(at []sample, m metrics) {
	const few = 3
	if len(at) < few {
		return
	}
	first := at[1].rateSince(at[0])
	lowest := first
	for i := range at[1:] {
		lowest = min(lowest, at[i+1].rateSince(at[i]))
	}
	m["last_to_first_million"] = at[len(at)-1].rateSince(at[len(at)-2]) / first
	m["lowest_to_first_million"] = lowest / first
}

// counter counts what has been published since the topic was emptied.
func (b *bench) counter(relays []*relayProcess, kafka bool) func(ctx context.Context) (int, error) {
	if kafka {
		return b.topic.Count
	}
	return func(context.Context) (int, error) {
		var n int64
		for _, r := range relays {
			n += r.published.Load()
		}
		return int(n), nil
	}
}

// sample is how far relays were at a time, and what they had used.
type sample struct {
	at                     time.Time
	n                      int
	relay, database, kafka float64 // seconds of processor time; below zero where they cannot be seen
}

// patience is how long nothing may be published before a repetition is given up.
const patience = time.Minute

// await waits until n messages have been published.
func (b *bench) await(ctx context.Context, counting func(context.Context) (int, error), relays []*relayProcess, n int) (sample, error) {
	last, since := -1, time.Now()
	for {
		count, err := counting(ctx)
		if err != nil {
			return sample{}, err
		}
		now := time.Now()
		switch {
		case count >= n:
			return b.sample(relays, now, count)
		case count > last:
			last, since = count, now
		case now.Sub(since) > patience:
			return sample{}, fmt.Errorf("%d of %d messages were published, and in %v none", count, n, patience)
		}
		select {
		case <-ctx.Done():
			return sample{}, ctx.Err()
		case <-time.After(sampling):
		}
	}
}

func (b *bench) sample(relays []*relayProcess, at time.Time, n int) (sample, error) {
	s := sample{at: at, n: n, database: -1, kafka: -1}
	for _, r := range relays {
		cpu, err := r.CPU()
		if err != nil {
			return s, err
		}
		s.relay += cpu
	}
	var err error
	if b.postgres != nil {
		if s.database, err = b.postgres.CPU(); err != nil {
			return s, err
		}
	}
	if b.kafka != nil {
		s.kafka, err = b.kafka.CPU()
	}
	return s, err
}

func (s sample) rateSince(begin sample) float64 {
	return float64(s.n-begin.n) / s.at.Sub(begin.at).Seconds()
}

// leastCPU is the least processor time that is told, in seconds: the system counts hundredths.
const leastCPU = 0.1

func (s sample) since(begin sample) metrics {
	perMillion := func(seconds float64) float64 { return seconds / float64(s.n-begin.n) * 1e6 }
	m := metrics{
		"rate_per_s":              s.rateSince(begin),
		"cpu_relay_s_per_million": perMillion(s.relay - begin.relay),
	}
	if s.database >= 0 {
		if used := s.database - begin.database; used >= leastCPU {
			m["cpu_database_s_per_million"] = perMillion(used)
		}
		m["cpu_s_per_million"] = perMillion(s.relay - begin.relay + s.database - begin.database)
	}
	if used := s.kafka - begin.kafka; s.kafka >= 0 && used >= leastCPU {
		m["cpu_kafka_s_per_million"] = perMillion(used)
	}
	return m
}
