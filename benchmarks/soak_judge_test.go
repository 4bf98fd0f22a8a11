package main

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox/benchmarks/result"
)

// testLimits are of a metric that is told by its factor, and one that is small.
var testLimits = limits{
	windows: []bound{{metric: "oldest_s", ever: 5, usual: 1}},
	run:     []limit{{metric: "p50_ms", factor: 1.3, floor: 1}, {metric: "table_mb", factor: 1.2, floor: 4}},
}

// steadyRuns are 31 windows in which nothing grows, with some noise, and a first one that is slower.
func steadyRuns() []result.Run {
	noise := []float64{1, 1.04, 0.97, 1.02, 0.96}
	runs := make([]result.Run, 31)
	for i := range runs {
		of := noise[i%len(noise)]
		runs[i] = result.Run{Repetition: i + 1, Metrics: metrics{
			"p50_ms": 10 * of, "table_mb": 1 * of, "duplicates": 0, "load_percent": 100, "oldest_s": 0.01,
		}}
	}
	runs[0].Metrics["p50_ms"], runs[0].Metrics["load_percent"] = 500, 40
	return runs
}

func TestJudge(t *testing.T) {
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
		}, fails: "p50_ms has grown from 10.00 to 500.00"},
		"a duplicate, in the window to warm up": {change: func(runs []result.Run) []result.Run {
			runs[0].Metrics["duplicates"] = 1
			return runs
		}, fails: "window 1: 1 messages came twice"},
		"a message that does not come": {change: func(runs []result.Run) []result.Run {
			runs[17].Metrics["oldest_s"] = 5.1
			return runs
		}, fails: "window 18: oldest_s was 5.10, beyond 5.00, which no window may be"},
		"five windows of thirty that are unusual": {change: func(runs []result.Run) []result.Run {
			times(runs[4:9], "oldest_s", 110)
			return runs
		}, fails: "oldest_s was beyond 1.00 in 5 of 30 windows, and may be in 4"},
		"four of them": {change: func(runs []result.Run) []result.Run {
			times(runs[4:8], "oldest_s", 110)
			return runs
		}},
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
			require.Len(t, growths, len(testLimits.run))
		})
	}
}

// judgedRate is the load of the runs here, and judgedLimits are what `make soak` judges it by on the servers of
// `make services`.
const judgedRate = 1000

var judgedLimits = limitsOf(judgedRate, walSettings{mostMB: 2147, checkpointSeconds: 300}, true)

// flatRuns are an hour as it is on a quiet machine: noise, a checkpoint in each tenth window, tables that a vacuum cuts
// back about every other minute, and a first window in which all begins.
func flatRuns(seed uint64) []result.Run {
	rng := rand.New(rand.NewPCG(seed, 0))
	about := func(v, spread float64) float64 { return v * (1 + spread*(2*rng.Float64()-1)) }
	runs := make([]result.Run, 120)
	dead := 0.0 // rows since the last vacuum, in windows
	for i := range runs {
		if dead++; dead > 2+2*rng.Float64() {
			dead = rng.Float64()
		}
		runs[i] = result.Run{Repetition: i + 1, Metrics: metrics{
			"p50_ms": about(2.3, 0.2), "p99_ms": about(6, 0.4), "p999_ms": about(25, 0.5), "max_ms": about(150, 0.8),
			"backlog": about(8, 1), "oldest_s": about(0.01, 1), "duplicates": 0, "load_percent": about(100, 0.01),
			"table_mb": 3 + dead, "index_mb": 2 + dead/2, "slots_mb": about(0.2, 0.2), "relays_mb": about(0.1, 0.2),
			"wal_bytes": about(820, 0.05), "wal_on_disk_mb": about(450, 0.1), "wal_held_mb": 0,
			"memory_mb": about(50, 0.03), "memory_peak_mb": about(53, 0.04),
			"cpu_relay_s_per_million": about(95, 0.15), "cpu_database_s_per_million": about(160, 0.1),
		}}
		if i%10 == 9 {
			scale(runs[i:i+1], "p99_ms", 20)
			scale(runs[i:i+1], "p999_ms", 20)
			scale(runs[i:i+1], "max_ms", 8)
		}
	}
	set(runs[:1], "p50_ms", 500)
	set(runs[:1], "load_percent", 40)
	return runs
}

func set(runs []result.Run, metric string, v float64) {
	for _, run := range runs {
		run.Metrics[metric] = v
	}
}

func scale(runs []result.Run, metric string, factor float64) {
	for _, run := range runs {
		run.Metrics[metric] *= factor
	}
}

// grow adds to a metric what grows steadily from nothing.
func grow(runs []result.Run, metric string, by float64) {
	for i, run := range runs {
		run.Metrics[metric] += by * float64(i) / float64(len(runs)-1)
	}
}

// Everything that is to be seen is to be seen by itself: what fails with a run is one metric of it.
func TestJudge_FailsWhatIsNotFlat(t *testing.T) {
	middle := func(metric string, v float64) func([]result.Run) {
		return func(runs []result.Run) { set(runs[40:80], metric, v) }
	}
	end := func(metric string, v float64) func([]result.Run) {
		return func(runs []result.Run) { set(runs[len(runs)-19:], metric, v) }
	}
	all := func(metric string, v float64) func([]result.Run) {
		return func(runs []result.Run) { set(runs, metric, v) }
	}
	growing := func(metric string, by float64) func([]result.Run) {
		return func(runs []result.Run) { grow(runs, metric, by) }
	}
	for _, test := range []struct {
		name   string
		change func(runs []result.Run)
		says   string
	}{
		{"p50 from 2.3 to 17 ms", growing("p50_ms", 14.7), "p50_ms has grown"},
		{"p99 from 5 to 78 ms", growing("p99_ms", 73), "p99_ms has grown"},
		{"p99.9 from 25 ms to a second", growing("p999_ms", 975), "p999_ms has grown"},
		{"tables by 8.9 MB", growing("table_mb", 8.9), "table_mb grows by"},
		{"indexes by 5.5 MB", growing("index_mb", 5.5), "index_mb grows by"},
		{"memory by 8 MB", growing("memory_mb", 8), "memory_mb grows by"},
		{"the peak of memory by 8.9 MB", growing("memory_peak_mb", 8.9), "memory_peak_mb grows by"},
		{"the table of slots by 0.9 MB", growing("slots_mb", 0.9), "slots_mb grows by"},
		{"the log from 0.2 to 2.1 GB", func(runs []result.Run) {
			set(runs, "wal_on_disk_mb", 200)
			grow(runs, "wal_on_disk_mb", 1900)
		}, "wal_on_disk_mb grows by"},
		{"a slot that holds the log", growing("wal_held_mb", 1900), "wal_held_mb was"},

		{"a middle third with a p50 of 1.5 s", middle("p50_ms", 1500), "p50_ms was 1500.00"},
		{"a middle third with a p50 of 0.2 s", middle("p50_ms", 200), "p50_ms has grown"},
		{"a middle third with a backlog of 20,000", middle("backlog", 20_000), "backlog was 20000.00"},
		{"a middle third with a message of 55 s", middle("oldest_s", 55), "oldest_s was 55.00"},
		{"a middle third without a load", middle("load_percent", 0), "load_percent was 0.00"},
		{"a middle third with large tables", middle("table_mb", 900), "table_mb has grown"},

		{"an end with a backlog of 30,000", end("backlog", 30_000), "backlog was 30000.00"},
		{"an end with a table of 900 MB", end("table_mb", 900), "table_mb ended at 900.00"},
		{"an end with a log of 20 GB", end("wal_on_disk_mb", 20_000), "wal_on_disk_mb ended at 20000.00"},
		{"an end with a memory of 2 GB", end("memory_mb", 2000), "memory_mb ended at 2000.00"},
		{"an end with a p50 of 1 s", end("p50_ms", 1000), "p50_ms ended at 1000.00"},
		{"three windows at the end with a p50 of 20 ms", func(runs []result.Run) {
			set(runs[len(runs)-3:], "p50_ms", 20)
		}, "p50_ms ended at 20.00"},

		{"messages of 59 s in every window", all("max_ms", 59_000), "max_ms was 59000.00"},
		{"messages of 59 s in one window", func(runs []result.Run) { set(runs[70:71], "max_ms", 59_000) }, "max_ms was 59000.00"},
		{"messages of 4 s in every fifth window", func(runs []result.Run) {
			for i := 0; i < len(runs); i += 5 {
				set(runs[i:i+1], "max_ms", 4000)
			}
		}, "max_ms was beyond 2000.00 in 23 of 119 windows"},
		{"a load that is 70 % in every fifth window", func(runs []result.Run) {
			for i := 0; i < len(runs); i += 5 {
				set(runs[i:i+1], "load_percent", 70)
			}
		}, "load_percent was beyond 90.00 in 23 of 119 windows"},
		{"a last third with a load of 94 %", func(runs []result.Run) { set(runs[80:], "load_percent", 94) }, "the load was 94 %"},
	} {
		t.Run(test.name, func(t *testing.T) {
			runs := flatRuns(1)
			test.change(runs)
			_, err := judge(runs, judgedLimits)
			require.ErrorContains(t, err, test.says)
		})
	}
}

// A machine with two cores has noise, neighbours, checkpoints and vacuums that come late. Each must pass, whatever the noise.
func TestJudge_PassesWhatIsFlat(t *testing.T) {
	const seeds = 200
	longCheckpoint := metrics{"p50_ms": 90, "p99_ms": 1400, "p999_ms": 1800, "max_ms": 2500, "load_percent": 85}
	slowWindow := metrics{
		"p50_ms": 600, "p99_ms": 1900, "p999_ms": 3000, "max_ms": 4000, "backlog": 3000, "oldest_s": 3, "load_percent": 60,
	}
	slow := func(runs []result.Run) { // one window, and one in which the schedule catches up
		for metric, v := range slowWindow {
			set(runs[:1], metric, v)
		}
		if len(runs) > 1 {
			set(runs[1:2], "load_percent", 140)
		}
	}
	for name, change := range map[string]func(runs []result.Run, rng *rand.Rand){
		"a quiet machine": func([]result.Run, *rand.Rand) {},
		"a busy machine": func(runs []result.Run, rng *rand.Rand) {
			for _, run := range runs[warmUp:] {
				for _, metric := range []string{"p50_ms", "p99_ms"} {
					run.Metrics[metric] *= 15 * math.Exp(0.3*rng.NormFloat64())
				}
				run.Metrics["p99_ms"] = min(run.Metrics["p99_ms"], 1900)
				run.Metrics["p999_ms"] *= 8
				run.Metrics["load_percent"] += 2 * rng.NormFloat64()
				run.Metrics["backlog"] *= 10
			}
		},
		"tables that are cut back to nothing about once a minute, and once late": func(runs []result.Run, rng *rand.Rand) {
			const window, minute = 30, 60
			dead, late := rng.Float64()*minute, 20+rng.IntN(80) // seconds since the last vacuum
			for i, run := range runs {
				most := 0.0
				for range window {
					if dead++; dead > minute+3*rng.Float64() && i != late {
						dead = 0
					}
					most = max(most, dead)
				}
				run.Metrics["table_mb"], run.Metrics["index_mb"] = 2+0.4*most, 1+0.15*most
			}
		},
		"a vacuum that comes every five minutes": func(runs []result.Run, rng *rand.Rand) {
			begin := rng.IntN(10)
			for i, run := range runs {
				run.Metrics["table_mb"] = 5 + 4*float64((i+begin)%10)
			}
		},
		"a long checkpoint": func(runs []result.Run, rng *rand.Rand) {
			at := 1 + rng.IntN(len(runs)-1)
			for metric, v := range longCheckpoint {
				set(runs[at:at+1], metric, v)
			}
		},
		"one slow window":  func(runs []result.Run, rng *rand.Rand) { slow(runs[1+rng.IntN(len(runs)-1):]) },
		"a slow last one":  func(runs []result.Run, _ *rand.Rand) { slow(runs[len(runs)-1:]) },
		"a slow first one": func(runs []result.Run, _ *rand.Rand) { slow(runs) },
		"a neighbour for four minutes": func(runs []result.Run, rng *rand.Rand) {
			at := 1 + rng.IntN(len(runs)-20)
			scale(runs[at:at+8], "p50_ms", 15)
			set(runs[at:at+8], "p99_ms", 300)
			scale(runs[at:at+8], "cpu_relay_s_per_million", 2)
		},
		"a server whose log is new": func(runs []result.Run, _ *rand.Rand) {
			for i := range 20 {
				set(runs[i:i+1], "wal_on_disk_mb", 50+400*float64(i)/20)
			}
		},
		"memory that is taken in the first minutes": func(runs []result.Run, _ *rand.Rand) {
			for i := range 12 {
				scale(runs[i:i+1], "memory_mb", 0.6+0.4*float64(i)/12)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(seeds) {
				runs := flatRuns(seed)
				change(runs, rand.New(rand.NewPCG(seed, 1)))
				growths, err := judge(runs, judgedLimits)
				require.NoError(t, err, "seed %d", seed)
				require.NotEmpty(t, growths)
			}
		})
	}
}

// Ten minutes are a fifth of the windows, and quiet ones pass, too.
func TestJudge_PassesAFlatRunOfTenMinutes(t *testing.T) {
	for seed := range uint64(200) {
		_, err := judge(flatRuns(seed)[:20], judgedLimits)
		require.NoError(t, err, "seed %d", seed)
	}
}
