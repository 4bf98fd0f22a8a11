package main

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox/benchmarks/measure"
	"github.com/watermill-outbox/outbox/benchmarks/result"
)

// testLimits are of a metric that is told by its factor, one that is small, and one that is free up to a bound.
var testLimits = []limit{
	{metric: "p50_ms", factor: 1.3, floor: 1}, {metric: "table_mb", factor: 1.2, floor: 4}, {metric: "wal_on_disk_mb", factor: 1.2, free: 1000},
}

// steadyRuns are 31 windows in which nothing grows, with some noise, and a first one that is slower.
func steadyRuns() []result.Run {
	noise := []float64{1, 1.04, 0.97, 1.02, 0.96}
	runs := make([]result.Run, 31)
	for i := range runs {
		of := noise[i%len(noise)]
		runs[i] = result.Run{Repetition: i + 1, Metrics: metrics{
			"p50_ms": 10 * of, "table_mb": 1 * of, "wal_on_disk_mb": 100 * of, "duplicates": 0, "load_percent": 100, "oldest_s": 0.01,
		}}
	}
	runs[0].Metrics["p50_ms"], runs[0].Metrics["load_percent"] = 500, 40
	return runs
}

func TestJudge(t *testing.T) {
	const warmUp = 1
	thirds := func(runs []result.Run) (first, last []result.Run) {
		return runs[warmUp : warmUp+10], runs[warmUp+20:]
	}
	times := func(of []result.Run, metric string, factor float64) {
		for _, run := range of {
			run.Metrics[metric] *= factor
		}
	}
	for name, test := range map[string]struct {
		change func(runs []result.Run) []result.Run
		fails  string // empty where it must pass
	}{
		"steady": {change: func(runs []result.Run) []result.Run { return runs }},
		"a figure just within its factor": {change: func(runs []result.Run) []result.Run {
			_, last := thirds(runs)
			times(last, "p50_ms", 1.29)
			return runs
		}},
		"a figure just above its factor": {change: func(runs []result.Run) []result.Run {
			_, last := thirds(runs)
			times(last, "p50_ms", 1.31)
			return runs
		}, fails: "p50_ms has grown from 10.00 to 13.10, and may be 13.00"},
		"a small figure that grows fourfold below its floor": {change: func(runs []result.Run) []result.Run {
			_, last := thirds(runs)
			times(last, "table_mb", 4.5)
			return runs
		}},
		"a small figure that grows beyond its floor": {change: func(runs []result.Run) []result.Run {
			_, last := thirds(runs)
			times(last, "table_mb", 5.5)
			return runs
		}, fails: "table_mb has grown from 1.00 to 5.50, and may be 5.00"},
		"a log that fills what it has": {change: func(runs []result.Run) []result.Run {
			_, last := thirds(runs)
			times(last, "wal_on_disk_mb", 9.9)
			return runs
		}},
		"a log that fills more": {change: func(runs []result.Run) []result.Run {
			_, last := thirds(runs)
			times(last, "wal_on_disk_mb", 10.1)
			return runs
		}, fails: "wal_on_disk_mb has grown from 100.00 to 1010.00, and may be 1000.00"},
		"a figure that grows by a fortieth of itself in each window": {change: func(runs []result.Run) []result.Run {
			for i, run := range runs {
				run.Metrics["p50_ms"] *= 1 + float64(i)/40
			}
			return runs
		}, fails: "p50_ms has grown"},
		"a figure that falls": {change: func(runs []result.Run) []result.Run {
			first, _ := thirds(runs)
			times(first, "p50_ms", 9)
			return runs
		}},
		"four bad windows of the last ten, such as of a neighbour": {change: func(runs []result.Run) []result.Run {
			_, last := thirds(runs)
			times(last[2:6], "p50_ms", 50)
			return runs
		}},
		"the middle third, which is between two that are alike": {change: func(runs []result.Run) []result.Run {
			times(runs[warmUp+10:warmUp+20], "p50_ms", 50)
			return runs
		}},
		"a duplicate, in the window to warm up": {change: func(runs []result.Run) []result.Run {
			runs[0].Metrics["duplicates"] = 1
			return runs
		}, fails: "window 1: 1 messages came twice"},
		"a window in which the relay waited for a lease time": {change: func(runs []result.Run) []result.Run {
			runs[17].Metrics["p99_ms"] = 3287
			return runs
		}, fails: "window 18: the relay stood still: one message in a hundred took more than 3287 ms"},
		"a message that does not come": {change: func(runs []result.Run) []result.Run {
			runs[17].Metrics["oldest_s"] = 61
			return runs
		}, fails: "window 18: a message that was committed 61 s ago is not in Kafka"},
		"a metric that is missing once": {change: func(runs []result.Run) []result.Run {
			delete(runs[30].Metrics, "table_mb")
			return runs
		}, fails: "window 31: table_mb could not be measured"},
		"duplicates that nobody counted": {change: func(runs []result.Run) []result.Run {
			delete(runs[12].Metrics, "duplicates")
			return runs
		}, fails: "window 13: duplicates could not be measured"},
		"a metric that is no number": {change: func(runs []result.Run) []result.Run {
			runs[4].Metrics["p50_ms"] = math.NaN()
			return runs
		}, fails: "window 5: p50_ms could not be measured"},
		"a window that has failed": {change: func(runs []result.Run) []result.Run {
			runs[4].Error = "the relay has ended"
			return runs
		}, fails: "window 5: the relay has ended"},
		"a load that was not kept up": {change: func(runs []result.Run) []result.Run {
			_, last := thirds(runs)
			times(last, "load_percent", 0.9)
			return runs
		}, fails: "the load was 90 % of what was asked for"},
		"the fewest windows": {change: func(runs []result.Run) []result.Run { return runs[:10] }},
		"too few windows":    {change: func(runs []result.Run) []result.Run { return runs[:9] }, fails: "9 windows are too few"},
		"none":               {change: func([]result.Run) []result.Run { return nil }, fails: "0 windows are too few"},
	} {
		t.Run(name, func(t *testing.T) {
			growths, err := judge(test.change(steadyRuns()), testLimits)
			if test.fails != "" {
				require.ErrorContains(t, err, test.fails)
				return
			}
			require.NoError(t, err)
			require.Len(t, growths, len(testLimits))
		})
	}
}

// What cannot be divided is left out, and then missed.
func TestUsage_LeavesOutWhatCannotBeTold(t *testing.T) {
	begin := time.Now()
	last := usage{at: begin, relay: 1, database: math.NaN(), kafka: 2, wal: 1e6}
	now := usage{at: begin.Add(10 * time.Second), relay: 3, database: math.NaN(), kafka: 6, wal: 11e6}
	m := metrics{}
	now.since(last, measure.Window{Committed: 10_000, Written: 8_000}, 1_000, m)
	require.Equal(t, metrics{
		"rate_per_s": 800, "load_percent": 100, "wal_bytes": 1000,
		"cpu_relay_s_per_million": 250, "cpu_kafka_s_per_million": 500,
	}, m)
	m = metrics{}
	now.since(last, measure.Window{}, 1_000, m)
	require.Equal(t, metrics{"rate_per_s": 0, "load_percent": 0}, m)
}

func TestSoak_IncompleteSaysWhy(t *testing.T) {
	why := errors.New("interrupted")
	r := &result.Result{Mode: "soak", Runs: steadyRuns()[:2]}
	c := &soakCommand{}
	c.markIncomplete(r, why)
	file := filepath.Join(t.TempDir(), "soak.json")
	require.NoError(t, r.Write(file))
	read, err := result.Read(file)
	require.NoError(t, err)
	require.Equal(t, incomplete, read.Mode)
	require.Len(t, read.Runs, 3)
	require.Equal(t, "interrupted", read.Runs[2].Error)
	require.Equal(t, 3, read.Runs[2].Repetition)

	r = &result.Result{Runs: []result.Run{{Error: "a bad window"}}}
	c.markIncomplete(r, why)
	require.Len(t, r.Runs, 1)
}

// A window that is too long for the time is refused before anything is begun.
func TestSoak_IsOfEnoughWindows(t *testing.T) {
	for _, c := range []soakCommand{
		{Duration: 9 * time.Second, Window: time.Second, Rate: 1},
		{Duration: time.Minute, Window: 0, Rate: 1},
		{Duration: time.Minute, Window: time.Second, Rate: 0},
	} {
		c.Out = filepath.Join(t.TempDir(), "soak.json")
		require.ErrorContains(t, c.Run(), "a soak is of at least")
		_, err := os.Stat(c.Out)
		require.ErrorIs(t, err, os.ErrNotExist)
	}
}
