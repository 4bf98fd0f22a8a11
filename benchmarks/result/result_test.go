package result

import (
	"flag"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write testdata anew")

// synthetic is the file that the tests of this package read: figures that nobody measured, of every peer and of each kind
// of scenario.
func synthetic(t *testing.T) *Result {
	t.Helper()
	file := filepath.Join("testdata", "synthetic.json")
	if *update {
		require.NoError(t, makeSynthetic(t).Write(file))
	}
	r, err := Read(file)
	require.NoError(t, err)
	return r
}

func makeSynthetic(t *testing.T) *Result {
	t.Helper()
	r := &Result{
		Started: time.Date(2025, time.November, 23, 12, 0, 0, 0, time.UTC), Took: 252, Mode: "quick", Seed: 1,
		Machine:  Machine{CPU: "figures that are made up, for tests", Cores: 2, Memory: 8 << 30, OS: "Debian 12"},
		Versions: map[string]string{"PostgreSQL": "15.18", "Kafka": "4.1.0", "Debezium": "3.3.1.Final"},
		Peers: map[string]string{
			"outbox":   "this project: `outbox.NewForwarder(store, publisher)` with its defaults",
			"Debezium": "EventRouter on Kafka Connect, `poll.interval.ms=5`",
		},
	}
	rng := rand.New(rand.NewPCG(1, 1))
	around := func(v float64) float64 { return math.Round(v*(0.94+0.12*rng.Float64())*100) / 100 }
	for repetition := 1; repetition <= 3; repetition++ {
		for _, p := range []struct {
			name                     string
			noop, kafka, p50, caller float64 // messages a second, twice; milliseconds; transactions a second
		}{
			{"outbox", 148_000, 71_200, 3.1, 2_310},
			{"watermill-sql v3", 1_020, 870, 520, 1_650},
			{"watermill-sql v3, 5 ms", 15_900, 2_230, 9.4, 1_655},
			{"watermill-sql v4", 1_130, 905, 515, 1_640},
			{"Debezium", 0, 37_900, 6.2, 2_400},
			{"river", 9_180, 8_460, 104, 1_210},
			{"SKIP LOCKED, status", 16_800, 12_100, 14.2, 2_380},
			{"SKIP LOCKED, delete", 78_300, 41_500, 8.3, 2_390},
			{"watermill-kafka", 0, 88_900, 1.4, 0},
			{"franz-go", 0, 305_000, 1.2, 0},
		} {
			add := func(scenario string, metrics map[string]float64, latencies string) {
				r.Runs = append(r.Runs, Run{
					Scenario: scenario, Peer: p.name, Repetition: repetition, Started: r.Started, Took: 2.5,
					Metrics: metrics, Latencies: latencies,
				})
			}
			if p.noop > 0 {
				add("drain-noop", map[string]float64{"rate_per_s": around(p.noop)}, "")
			} else if p.name == "Debezium" && repetition == 1 {
				r.Runs = append(r.Runs, Run{
					Scenario: "drain-noop", Peer: p.name, Repetition: 1, Started: r.Started, Error: "publishes to Kafka only",
				})
			}
			add("drain-kafka", map[string]float64{
				"rate_per_s": around(p.kafka), "cpu_s_per_million": around(2.2e6 / p.kafka), "memory_peak_mb": around(62),
			}, "")
			p50, p99, latencies := latenciesAround(t, rng, p.p50)
			add("latency-500", map[string]float64{"p50_ms": p50, "p99_ms": p99, "duplicates": 0}, latencies)
			if p.caller > 0 {
				add("caller-16", map[string]float64{
					"tx_per_s": around(p.caller), "p50_ms": around(16_000 / p.caller), "wal_bytes": math.Round(around(1_100)),
				}, "")
			}
		}
	}
	r.Ratios = ratiosOf(r.Runs)
	return r
}

func latenciesAround(t *testing.T, rng *rand.Rand, p50 float64) (median, p99 float64, encoded string) {
	t.Helper()
	h := hdrhistogram.New(1, time.Minute.Microseconds(), 2)
	for range 300 {
		require.NoError(t, h.RecordValue(int64(p50*1000*math.Exp(0.25*rng.NormFloat64()))))
	}
	b, err := h.Encode(hdrhistogram.V2CompressedEncodingCookieBase)
	require.NoError(t, err)
	return float64(h.ValueAtPercentile(50)) / 1000, float64(h.ValueAtPercentile(99)) / 1000, string(b)
}

func ratiosOf(runs []Run) []Ratio {
	var ratios []Ratio
	for _, g := range []struct {
		scenario, metric, theirs string
		goal                     Goal
	}{
		{"drain-kafka", "rate_per_s", "Debezium", Goal{AtLeast: 1.8}},
		{"drain-kafka", "rate_per_s", "watermill-sql v3", Goal{AtLeast: 25}},
		{"drain-kafka", "rate_per_s", "watermill-kafka", Goal{AtLeast: 0.7}},
		{"drain-kafka", "cpu_s_per_million", "Debezium", Goal{Below: 1}},
		{"drain-noop", "rate_per_s", "SKIP LOCKED, delete", Goal{AtLeast: 1.5}},
		{"drain-noop", "rate_per_s", "river", Goal{}},
		{"drain-noop", "rate_per_s", "Debezium", Goal{AtLeast: 1}}, // which has no rate
		{"latency-500", "p99_ms", "Debezium", Goal{Below: 1}},
		{"caller-16", "p50_ms", "SKIP LOCKED, delete", Goal{AtMost: 1.01}},
	} {
		if r, ok := Compare(runs, g.scenario, g.metric, project, g.theirs); ok {
			ratios = append(ratios, r.WithGoal(g.goal))
		}
	}
	return ratios
}

func TestWrite_LeavesOutWhatIsNoNumber(t *testing.T) {
	file := filepath.Join(t.TempDir(), "result.json")
	r := &Result{Mode: "quick", Started: time.Now(), Runs: []Run{
		{Metrics: map[string]float64{"rate_per_s": math.NaN(), "p50_ms": math.Inf(1), "p99_ms": 2, "max_ms": math.Inf(-1)}},
		{Error: "broke"},
	}}
	require.NoError(t, r.Write(file))
	got, err := Read(file)
	require.NoError(t, err)
	require.Equal(t, map[string]float64{"p99_ms": 2}, got.Runs[0].Metrics)
	require.NoFileExists(t, file+".new")
}

func TestValues_AreOfRunsThatHaveNotFailed(t *testing.T) {
	rate := func(v float64) map[string]float64 { return map[string]float64{"rate_per_s": v} }
	r := &Result{Runs: []Run{
		{Scenario: "held", Peer: "outbox", Metrics: rate(3)},
		{Scenario: "held", Peer: "outbox", Metrics: rate(100), Error: "message 5 was lost"},
		{Scenario: "held", Peer: "outbox", Metrics: rate(math.NaN())},
		{Scenario: "held", Peer: "outbox", Metrics: map[string]float64{"p50_ms": 9}},
		{Scenario: "held", Peer: "river", Metrics: rate(9)},
		{Scenario: "zipf", Peer: "outbox", Metrics: rate(9)},
		{Scenario: "held", Peer: "outbox", Metrics: rate(2)},
	}}
	require.Equal(t, []float64{3, 2}, r.Values("held", "outbox", "rate_per_s"))
}

func TestRead_SaysWhatIsWrongWithAFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "result.json")
	_, err := Read(file)
	require.ErrorIs(t, err, os.ErrNotExist)
	require.NoError(t, os.WriteFile(file, []byte("<html>"), 0o600))
	_, err = Read(file)
	require.ErrorContains(t, err, "result.json is no result of the benchmarks")
}

func TestMedian(t *testing.T) {
	for _, c := range []struct{ values, want []float64 }{
		{[]float64{5}, []float64{5, 5, 5}},
		{[]float64{9, 1}, []float64{5, 1, 9}},
		{[]float64{3, 1, 2}, []float64{2, 1, 3}},
		{[]float64{4, 1, 2, 8}, []float64{3, 1, 8}},
	} {
		median, low, high := Median(c.values)
		require.Equal(t, c.want, []float64{median, low, high})
	}
}
