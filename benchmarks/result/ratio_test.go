package result

import (
	"encoding/json"
	"math"
	"testing"

	"github.com/stretchr/testify/require"
)

// runsOf makes a run of each value, in the order of repetitions; NaN stands for a repetition that has none.
func runsOf(peer string, values ...float64) []Run {
	var runs []Run
	for n, v := range values {
		run := Run{Scenario: "drain-kafka", Peer: peer, Repetition: n + 1, Metrics: map[string]float64{"rate_per_s": v}}
		if math.IsNaN(v) {
			run.Metrics, run.Error = nil, "broke"
		}
		runs = append(runs, run)
	}
	return runs
}

func TestCompare(t *testing.T) {
	missing := math.NaN()
	for name, c := range map[string]struct {
		ours, theirs     []float64
		value, low, high float64
		repetitions      int
	}{
		"one repetition":                {ours: []float64{6}, theirs: []float64{3}, value: 2, low: 2, high: 2, repetitions: 1},
		"by repetition, not by median":  {ours: []float64{10, 20, 90}, theirs: []float64{10, 5, 30}, value: 3, low: 1, high: 4, repetitions: 3},
		"an even number":                {ours: []float64{2, 4}, theirs: []float64{1, 1}, value: 3, low: 2, high: 4, repetitions: 2},
		"theirs broke once":             {ours: []float64{2, 4, 8}, theirs: []float64{1, missing, 1}, value: 5, low: 2, high: 8, repetitions: 2},
		"ours broke once":               {ours: []float64{missing, 4}, theirs: []float64{1, 1}, value: 4, low: 4, high: 4, repetitions: 1},
		"they have more":                {ours: []float64{4}, theirs: []float64{2, 100, 100}, value: 2, low: 2, high: 2, repetitions: 1},
		"nothing divided by something":  {ours: []float64{0}, theirs: []float64{2}, repetitions: 1},
		"a small one by a large one":    {ours: []float64{1}, theirs: []float64{4}, value: 0.25, low: 0.25, high: 0.25, repetitions: 1},
		"each as much as the other one": {ours: []float64{7, 7}, theirs: []float64{7, 7}, value: 1, low: 1, high: 1, repetitions: 2},
	} {
		t.Run(name, func(t *testing.T) {
			runs := append(runsOf("outbox", c.ours...), runsOf("watermill-sql v3, 5 ms", c.theirs...)...)
			got, ok := Compare(runs, "drain-kafka", "rate_per_s", "outbox", "watermill-sql v3, 5 ms")
			require.True(t, ok)
			require.Equal(t, Ratio{
				Name:     "drain-kafka.watermill-sql-v3-5-ms.rate_per_s",
				Scenario: "drain-kafka", Metric: "rate_per_s", Ours: "outbox", Theirs: "watermill-sql v3, 5 ms",
				Value: c.value, Low: c.low, High: c.high, Repetitions: c.repetitions,
			}, got)
		})
	}
}

func TestCompare_HasNoRatio_WhereNothingCanBeDivided(t *testing.T) {
	missing := math.NaN()
	lost := runsOf("Debezium", 1)
	lost[0].Error = "message 5 was lost"
	inNone := runsOf("Debezium", 1)
	inNone[0].Metrics["rate_per_s"] = missing
	for name, runs := range map[string][]Run{
		"no runs":                    nil,
		"no runs of theirs":          runsOf("outbox", 1, 2),
		"no runs of ours":            runsOf("Debezium", 1, 2),
		"no repetition in common":    append(runsOf("outbox", missing, 2), runsOf("Debezium", 1)...),
		"division by zero":           append(runsOf("outbox", 1), runsOf("Debezium", 0)...),
		"zero by zero":               append(runsOf("outbox", 0), runsOf("Debezium", 0)...),
		"division by zero, once":     append(runsOf("outbox", 1, 1), runsOf("Debezium", 1, 0)...),
		"theirs failed late":         append(runsOf("outbox", 1), lost...),
		"a divisor that is none":     append(runsOf("outbox", 1), inNone...),
		"more than a float can hold": append(runsOf("outbox", 1e308), runsOf("Debezium", 1e-308)...),
	} {
		t.Run(name, func(t *testing.T) {
			got, ok := Compare(runs, "drain-kafka", "rate_per_s", "outbox", "Debezium")
			require.False(t, ok)
			require.Zero(t, got)
			_, err := json.Marshal(got)
			require.NoError(t, err)
		})
	}
}

func TestCompare_IsOfOneScenarioAndMetric(t *testing.T) {
	runs := append(runsOf("outbox", 1), runsOf("Debezium", 1)...)
	_, ok := Compare(runs, "drain-noop", "rate_per_s", "outbox", "Debezium")
	require.False(t, ok)
	_, ok = Compare(runs, "drain-kafka", "p50_ms", "outbox", "Debezium")
	require.False(t, ok)
}

func TestGoal(t *testing.T) {
	for _, c := range []struct {
		goal       Goal
		text       string
		met, unmet []float64
	}{
		{Goal{}, "", nil, []float64{0, 1, math.NaN()}},
		{Goal{AtLeast: 1.8}, ">= 1.8", []float64{1.8, 2}, []float64{0, 1.79, math.NaN()}},
		{Goal{AtMost: 1.25}, "<= 1.25", []float64{0, 1.25}, []float64{1.26, math.NaN()}},
		{Goal{Below: 1}, "< 1", []float64{0, 0.99}, []float64{1, 2, math.NaN()}},
		{Goal{AtLeast: 0.9, AtMost: 1.1}, ">= 0.9, <= 1.1", []float64{0.9, 1, 1.1}, []float64{0.89, 1.11}},
		{Goal{AtLeast: 25}, ">= 25", []float64{25}, []float64{24.9}},
	} {
		require.Equal(t, c.text, c.goal.String())
		for _, v := range c.met {
			require.True(t, c.goal.Met(v), "%v of %v", c.goal, v)
			require.True(t, Ratio{Value: v, Repetitions: 3}.WithGoal(c.goal).Met)
			require.False(t, Ratio{Value: v, Repetitions: 2}.WithGoal(c.goal).Met)
		}
		for _, v := range c.unmet {
			require.False(t, c.goal.Met(v), "%v of %v", c.goal, v)
			require.Equal(t, Ratio{Value: 5, Repetitions: 3, Goal: c.text, Met: c.goal.Met(5)}, Ratio{Value: 5, Repetitions: 3}.WithGoal(c.goal))
		}
	}
}

func TestSlug(t *testing.T) {
	for name, want := range map[string]string{
		"outbox": "outbox", "watermill-sql v3, 5 ms": "watermill-sql-v3-5-ms", "SKIP LOCKED, status": "skip-locked-status",
		" (a) -- b! ": "a-b", "": "", "...": "",
	} {
		require.Equal(t, want, slug(name))
	}
}
