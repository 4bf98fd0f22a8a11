package result

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestMarkdown(t *testing.T) {
	got := synthetic(t).Markdown()
	file := filepath.Join("testdata", "synthetic.md")
	if *update {
		require.NoError(t, os.WriteFile(file, []byte(got), 0o644))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, string(want), got, "if this is meant to be, run the tests with -update")
}

func TestMarkdown_OfAResultWithoutAnything(t *testing.T) {
	got := (&Result{Mode: "full"}).Markdown()
	require.NotContains(t, got, "|")
	require.Equal(t, "<details>\n<summary>All figures</summary>\n\n</details>\n\n"+
		"Measured on 1 January 0001; mode full, seed 0, took 0s. `make bench` repeats it.\n", got)
}

func TestMarkdown_SaysWhereItIsFrom(t *testing.T) {
	r := synthetic(t)
	r.Versions["kafka_settings"] = "a 1, b 2"
	require.Contains(t, r.Markdown(), ", kafka settings (a 1, b 2); mode quick, seed 1, took 4m12s. `make bench-quick` repeats it.\n")
	r.Mode = "soak"
	require.Contains(t, r.Markdown(), "`make soak` repeats it.")
}

func TestMarkdown_NamesWhatHasNoTitle_AndWhatBroke(t *testing.T) {
	r := &Result{
		Runs: []Run{
			{Scenario: "new-one", Peer: "a | b", Repetition: 1, Metrics: map[string]float64{"zeal": 0.5, "apples": 7, "rate_per_s": 1}},
			{Scenario: "new-one", Peer: "outbox", Repetition: 1, Error: "no <nil>\nhere"},
			{Scenario: "new-one", Peer: "outbox", Repetition: 2, Error: "no <nil>\nhere"},
		},
		Ratios: []Ratio{{
			Scenario: "new-one", Metric: "apples", Ours: "outbox", Theirs: "a | b", Value: 0, Goal: ">= 0.9, <= 1.1",
		}},
	}
	got := r.Markdown()
	for _, line := range []string{
		"| new-one: apples against a \\| b | – | 7 | – | at least 0.9, at most 1.1 | no |",
		"**new-one**",
		"|  | messages/s | apples | zeal |",
		"| **outbox** | – | – | – |",
		"| a \\| b | 1 | 7 | 0.500 |",
		"outbox: no \\<nil> here",
	} {
		require.Contains(t, strings.Split(got, "\n"), line)
	}
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{
		0: "0", 1: "1", 12: "12", 100: "100", 999: "999", 1000: "1,000", 1004: "1,000", 1005: "1,000", 1006: "1,010",
		70_848: "70,800", 999_999: "1,000,000", 12_345_678: "12,300,000", 999.6: "1,000", 99.96: "100", 9.996: "10.0",
		0.5: "0.500", 0.12345: "0.123", 0.0012345: "0.00123", 1.8: "1.80", 12.34: "12.3", 123.4: "123",
		-1: "-1", -0.5: "-0.500", -999: "-999", -123_456: "-123,000",
		math.Inf(1): "–", math.Inf(-1): "–",
	} {
		require.Equal(t, want, number(v), "%v", v)
	}
	require.Equal(t, "–", number(math.NaN()))
	require.Equal(t, "1,234,567", count(1_234_567))
	for v, want := range map[float64]string{0: "0", 0.001: "0.001", 0.5: "0.5", 3 * 0.1: "0.3", 2000: "2,000", 1e6: "1,000,000"} {
		require.Equal(t, want, shortest(v))
	}
}

func TestSpread(t *testing.T) {
	for _, c := range []struct {
		values []float64
		unit   string
		want   string
	}{
		{nil, " ms", "–"},
		{[]float64{70_848}, "", "70,800"},
		{[]float64{72_300, 66_100, 70_848}, "/s", "70,800/s (66,100 to 72,300)"},
		{[]float64{2.0001, 2.0002}, " ms", "2.00 ms"},
		{[]float64{63, 61.25}, " MB", "62.1 MB (61.2 to 63.0)"},
		{[]float64{0, 2, 1}, "", "1 (0 to 2)"},
	} {
		require.Equal(t, c.want, spread(c.values, c.unit))
	}
}

func TestMetricTitle(t *testing.T) {
	for metric, want := range map[string]string{
		"rate_per_s":              "messages/s",
		"p999_ms":                 "p99.9 (ms)",
		"cpu_relay_s_per_million": "CPU of the relay (s per million messages)",
		"memory_peak_mb":          "peak memory (MB)",
		"wal_bytes":               "WAL of a transaction (bytes)",
		"duplicates":              "duplicates",
		"something_ms":            "something_ms",
	} {
		require.Equal(t, want, metricTitle(metric))
	}
}

func TestRepetitions(t *testing.T) {
	runs := []Run{
		{Scenario: "a", Repetition: 1},
		{Scenario: "b", Repetition: 1},
		{Scenario: "b", Repetition: 2},
		{Scenario: "b", Repetition: 3},
		{Scenario: "b", Repetition: 4, Error: "it broke"},
	}
	r := &Result{Runs: runs}
	require.Equal(t, "1 repetition", r.repetitions("a"))
	require.Equal(t, "3 repetitions in turns", r.repetitions("b", "c"))
	require.Equal(t, "1 to 3 repetitions in turns", r.repetitions("a", "b"))
	require.Equal(t, "no repetitions", r.repetitions("c"))
}
