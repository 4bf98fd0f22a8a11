package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/watermill-outbox/outbox/benchmarks/result"
)

const (
	// warmUp are the windows in which all begins. They have to be within bounds, and nothing is compared with them.
	warmUp = 1
	// leastWindows are those, and three thirds of three, of which a median is one that is not the worst.
	leastWindows = warmUp + 9
	// leastLoad is how much of the schedule has to be kept in each third: what was not committed has not been relayed. A
	// window may be late, since the next one catches up.
	leastLoad = 95
)

// limits are what a soak is judged by.
type limits struct {
	windows []bound // what each window may have
	run     []limit // what may become of it over the run
}

// bound is how much a figure may be in a window: ever, and usually, which is in all but about a tenth.
type bound struct {
	metric      string
	ever, usual float64
	least       bool // and no less than that, rather than no more
}

func (b bound) broken(v, by float64) bool {
	if b.least {
		return v < by
	}
	return v > by
}

// limit is how much a figure may be after the first third of the run: by a factor more than its median there, or by the
// floor, below which a difference is as good as none, whichever is more. The median of each later third is held to that. The
// last few windows, of which a median is less steady, may differ three times as much. A size must not grow by it in all, either.
type limit struct {
	metric        string
	factor, floor float64
	size          bool
}

func (l limit) most(first float64) float64 { return max(first*l.factor, first+l.floor) }

// walSettings are those of PostgreSQL that say how much of its log it keeps on disk.
type walSettings struct{ mostMB, checkpointSeconds float64 }

// limits are those of a rate on this server.
func (b *bench) limits(ctx context.Context, rate int) (limits, error) {
	var wal walSettings
	err := b.env.Pool.QueryRow(ctx, `
		SELECT pg_size_bytes(current_setting('max_wal_size')) / 1e6,
		       extract(epoch FROM current_setting('checkpoint_timeout')::interval)::float8`,
	).Scan(&wal.mostMB, &wal.checkpointSeconds)
	if err != nil {
		return limits{}, fmt.Errorf("asking for the settings of the log: %w", err)
	}
	return limitsOf(rate, wal, b.postgres != nil), nil
}

// limitsOf has limits that two cores keep which are shared with who knows what. Without any leak, a single window of ten
// seconds has had a p50 of 2.6 ms on a quiet machine, and of 33 ms, with a p99 of 197 ms, on one with a load of nine.
// Without a database whose process can be seen, nothing can be said of its time.
func limitsOf(rate int, wal walSettings, database bool) limits {
	perSecond := float64(rate)
	// All of the log of two checkpoints is on disk before the first of it is used again.
	const walMBPerMessage, checkpoints = 1200e-6, 2
	walFloor := min(checkpoints*wal.checkpointSeconds*perSecond*walMBPerMessage, wal.mostMB/2)
	l := limits{
		windows: []bound{
			// What waits is what comes in while a commit reaches the disk and Kafka; a checkpoint may take seconds.
			{metric: "backlog", ever: max(100, 5*perSecond), usual: max(10, perSecond/2)},
			{metric: "oldest_s", ever: 5, usual: 1},
			{metric: "p50_ms", ever: 1000, usual: 250},
			// One message in a hundred: ten times what the busiest machine has shown.
			{metric: "p99_ms", ever: 2000, usual: 1000},
			// Half a lease time, for which an instance does nothing that takes its server for another.
			{metric: "max_ms", ever: 5000, usual: 2000},
			{metric: "load_percent", ever: 50, usual: 90, least: true},
			// A slot that keeps up holds less than two segments of the log.
			{metric: "wal_held_mb", ever: 64, usual: 32},
		},
		run: []limit{
			{metric: "p50_ms", factor: 1.5, floor: 5},
			{metric: "p99_ms", factor: 1.5, floor: 25},
			{metric: "p999_ms", factor: 2, floor: 250},
			{metric: "backlog", factor: 1.5, floor: max(10, perSecond/10)},
			{metric: "oldest_s", factor: 1.5, floor: 0.1},
			// Space is freed by vacuums, a minute apart, and files keep the size that the latest has left.
			{metric: "table_mb", factor: 1.2, floor: 4, size: true},
			{metric: "index_mb", factor: 1.2, floor: 2.5, size: true},
			// A handful of rows each, which leases update.
			{metric: "slots_mb", factor: 1.2, floor: 0.5, size: true},
			{metric: "relays_mb", factor: 1.2, floor: 0.5, size: true},
			// 820 on a quiet machine and 1200 on a busy one.
			{metric: "wal_bytes", factor: 1.4, floor: 100},
			{metric: "wal_on_disk_mb", factor: 1.2, floor: walFloor, size: true},
			// By when garbage was last collected.
			{metric: "memory_mb", factor: 1.1, floor: 5, size: true},
			{metric: "memory_peak_mb", factor: 1.1, floor: 5, size: true},
			// Batches are larger while the machine is busy, and a message costs less: a quiet time after a busy one is dearer.
			{metric: "cpu_relay_s_per_million", factor: 2},
			{metric: "cpu_database_s_per_million", factor: 1.6},
		},
	}
	if !database {
		l.run = slices.DeleteFunc(l.run, func(l limit) bool { return l.metric == "cpu_database_s_per_million" })
	}
	return l
}

// bad says what is wrong with a window by itself: a figure that is missing or out of bounds, or a message that came twice.
func bad(run result.Run, limits limits) error {
	var errs []error
	if run.Error != "" {
		errs = append(errs, errors.New(run.Error))
	}
	metrics := []string{"duplicates", "load_percent"}
	for _, b := range limits.windows {
		metrics = append(metrics, b.metric)
	}
	for _, l := range limits.run {
		metrics = append(metrics, l.metric)
	}
	slices.Sort(metrics)
	for _, metric := range slices.Compact(metrics) {
		if v, ok := run.Metrics[metric]; !ok || math.IsNaN(v) || math.IsInf(v, 0) {
			errs = append(errs, fmt.Errorf("%s could not be measured", metric))
		}
	}
	if n := run.Metrics["duplicates"]; n > 0 {
		errs = append(errs, fmt.Errorf("%.0f messages came twice", n))
	}
	for _, b := range limits.windows {
		v, ok := run.Metrics[b.metric]
		if b.least && run.Repetition <= warmUp { // the next window has what this one has not
			continue
		}
		if ok && b.broken(v, b.ever) {
			errs = append(errs, fmt.Errorf("%s was %.2f, beyond %.2f, which no window may be", b.metric, v, b.ever))
		}
	}
	return errors.Join(errs...)
}

// judge returns an error if a window is bad, if too many are unusual, if the load was not what it says, or if the run was
// not flat; and how each figure went.
func judge(runs []result.Run, limits limits) ([]growth, error) {
	if len(runs) < leastWindows {
		return nil, fmt.Errorf("%d windows are too few for a judgement: it takes %d", len(runs), leastWindows)
	}
	var errs []error
	for i, run := range runs {
		if err := bad(run, limits); err != nil {
			errs = append(errs, fmt.Errorf("window %d: %w", i+1, err))
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	runs = runs[warmUp:]
	values := func(metric string) []float64 {
		all := make([]float64, len(runs))
		for i, run := range runs {
			all[i] = run.Metrics[metric]
		}
		return all
	}
	for _, b := range limits.windows {
		errs = append(errs, unusual(values(b.metric), b))
	}
	for _, third := range parts(values("load_percent"), 3) {
		if load := mean(third); load < leastLoad {
			errs = append(errs, fmt.Errorf("the load was %.0f %% of what was asked for in a third of the run: the machine is too slow for it", load))
		}
	}
	growths := make([]growth, len(limits.run))
	for i, l := range limits.run {
		growths[i] = grown(values(l.metric), l)
		errs = append(errs, growths[i].err())
	}
	return growths, errors.Join(errs...)
}

// unusual is an error if more than a tenth of the windows are, which are as many as have a checkpoint, and one more.
func unusual(values []float64, b bound) error {
	n := 0
	for _, v := range values {
		if b.broken(v, b.usual) {
			n++
		}
	}
	most := len(values)/10 + 1
	if n <= most {
		return nil
	}
	return fmt.Errorf("%s was beyond %.2f in %d of %d windows, and may be in %d", b.metric, b.usual, n, len(values), most)
}
