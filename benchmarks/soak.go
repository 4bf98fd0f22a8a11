package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/schollz/progressbar/v3"

	"github.com/watermill-outbox/outbox/benchmarks/peer"
	"github.com/watermill-outbox/outbox/benchmarks/result"
)

// soakCommand is a steady load over a long time.
type soakCommand struct {
	Duration time.Duration `default:"1h" help:"How long, in all; at least eight windows."`
	Window   time.Duration `default:"30s" help:"How long the load lasts between two looks at the tables."`
	Rate     int           `default:"1000" help:"Messages a second."`
	Seed     int64         `default:"1"`
	Out      string        `default:"soak.json" help:"The file to write."`
}

// growth is by how much a figure of the second half of the time may exceed that of the first, and by how much at least
// it has to for that to mean anything.
type growth struct {
	factor, floor float64
}

// grows has what must not grow. Latencies are those of a machine that does other things too; a table's size is what
// vacuums leave, which come by the minute.
var grows = map[string]growth{
	"p50_ms":         {1.5, 1},
	"p99_ms":         {2, 10},
	"table_mb":       {1.5, 4},
	"index_mb":       {1.5, 4},
	"wal_bytes":      {1.2, 100},
	"memory_peak_mb": {1.25, 16},
	"backlog":        {2, 1000},
}

func (c *soakCommand) Run() (err error) {
	const windows = 8
	if c.Duration < windows*c.Window {
		return fmt.Errorf("%v is less than %d windows of %v", c.Duration, windows, c.Window)
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	b, err := newBench(ctx, c.Seed)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	b.result.Mode = "soak"
	if err := c.soak(ctx, b); err != nil {
		return err
	}
	b.result.Took = time.Since(b.result.Started).Seconds()
	if err := b.result.Write(c.Out); err != nil {
		return err
	}
	return c.judge(b.result.Runs)
}

func (c *soakCommand) soak(ctx context.Context, b *bench) (err error) {
	o, err := peer.Ours.New(ctx, b.env)
	if err != nil {
		return err
	}
	b.outboxes[peer.Ours.Name], b.result.Peers[peer.Ours.Name] = o, peer.Ours.About
	if err := b.clean(ctx, o); err != nil {
		return err
	}
	relay, err := b.startRelay(ctx, peer.Ours, o, "kafka")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, relay.stop(ctx)) }()
	windows := int(c.Duration / c.Window)
	bar := progressbar.NewOptions(windows, progressbar.OptionSetWriter(os.Stderr), progressbar.OptionSetElapsedTime(true))
	for i := range windows {
		run := result.Run{Scenario: "soak", Peer: peer.Ours.Name, Repetition: i + 1, Started: time.Now()}
		if err := c.window(ctx, b, o, relay, &run); err != nil {
			return err
		}
		run.Took = time.Since(run.Started).Seconds()
		b.result.Runs = append(b.result.Runs, run)
		bar.Describe(fmt.Sprintf("p50 %.1f ms, p99 %.1f ms, table %.1f MB", run.Metrics["p50_ms"], run.Metrics["p99_ms"], run.Metrics["table_mb"]))
		_ = bar.Add(1) // the terminal may be gone
	}
	return bar.Finish()
}

// window has the load for a while. What is pending when it ends is counted, and then waited for.
func (c *soakCommand) window(ctx context.Context, b *bench, o peer.Outbox, relay *relayProcess, run *result.Run) error {
	l := latency{perSecond: c.Rate, perCommit: 1, lasts: c.Window - settling, shape: usual}
	if err := b.topic.Empty(ctx); err != nil {
		return err
	}
	relay.ResetPeak()
	relays := []*relayProcess{relay}
	begin, err := b.sample(relays, time.Now(), 0)
	if err != nil {
		return err
	}
	before, err := b.walPosition(ctx)
	if err != nil {
		return err
	}
	committed, err := l.load(ctx, b, o)
	if err != nil {
		return err
	}
	var pending, table, indexes float64
	err = b.env.Pool.QueryRow(ctx, `
		SELECT (SELECT count(*) FROM outbox_messages), pg_table_size('outbox_messages') / 1e6, pg_indexes_size('outbox_messages') / 1e6`,
	).Scan(&pending, &table, &indexes)
	if err != nil {
		return err
	}
	end, err := b.await(ctx, b.topic.Count, relays, len(committed))
	if err != nil {
		return err
	}
	after, err := b.walPosition(ctx)
	if err != nil {
		return err
	}
	peak, err := relay.Peak()
	if err != nil {
		return err
	}
	run.Metrics = end.since(begin)
	run.Metrics["backlog"], run.Metrics["table_mb"], run.Metrics["index_mb"] = pending, table, indexes
	run.Metrics["wal_bytes"], run.Metrics["memory_peak_mb"] = (after-before)/float64(len(committed)), peak
	return writtenAfter(ctx, b, committed, l.settled(), run)
}

// judge compares the halves of the time, without its first quarter, in which files reach their size.
func (c *soakCommand) judge(runs []result.Run) error {
	const quarter = 4
	runs = runs[len(runs)/quarter:]
	var errs []error
	for metric, may := range grows {
		median := func(of []result.Run) float64 {
			values := make([]float64, len(of))
			for i, run := range of {
				values[i] = run.Metrics[metric]
			}
			m, _, _ := result.Median(values)
			return m
		}
		first, second := median(runs[:len(runs)/2]), median(runs[len(runs)/2:])
		fmt.Printf("%-16s %10.2f %10.2f\n", metric, first, second) //nolint:forbidigo // what the command is for
		if second > first*may.factor && second > first+may.floor {
			errs = append(errs, fmt.Errorf("%s has grown from %.2f to %.2f", metric, first, second))
		}
	}
	return errors.Join(errs...)
}
