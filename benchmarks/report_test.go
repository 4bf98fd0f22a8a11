package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox/benchmarks/result"
)

// The README shows what the committed result says, and nothing else.
func TestReport_OfTheCommittedResult_IsWhatTheReadmeShows(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	require.NoError(t, err)
	chart, err := os.ReadFile("../docs/performance.svg")
	require.NoError(t, err)
	folder := t.TempDir()
	again := reportCommand{
		File: "results/quick.json", Readme: filepath.Join(folder, "README.md"), Chart: filepath.Join(folder, "performance.svg"),
	}
	require.NoError(t, os.WriteFile(again.Readme, readme, 0o600))
	require.NoError(t, again.Run())
	for file, want := range map[string][]byte{again.Readme: readme, again.Chart: chart} {
		got, err := os.ReadFile(file)
		require.NoError(t, err)
		require.Equal(t, string(want), string(got), "make bench-report makes another one of results/quick.json")
	}
}

func TestReport_RefusesWhatIsNoWholeRun(t *testing.T) {
	folder := t.TempDir()
	readme := filepath.Join(folder, "README.md")
	const before = "<!-- benchmarks:begin -->\nfigures\n<!-- benchmarks:end -->\n"
	for name, text := range map[string]string{
		"nothing": "", "null": "null", "an empty object": "{}", "another object": `{"name": "x"}`, "a list": "[]", "the half of one": `{"mode": "quick", `,
		"an interrupted run": `{"mode": "quick, interrupted", "started": "2026-01-02T03:04:05Z", "runs": [{"scenario": "drain-kafka"}]}`,
		"a soak":             `{"mode": "soak", "started": "2026-01-02T03:04:05Z", "runs": [{"scenario": "soak"}]}`,
	} {
		file, chart := filepath.Join(folder, "result.json"), filepath.Join(folder, "chart.svg")
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
		require.NoError(t, os.WriteFile(readme, []byte(before), 0o600))
		require.Error(t, (&reportCommand{File: file, Readme: readme, Chart: chart}).Run(), name)
		after, err := os.ReadFile(readme)
		require.NoError(t, err)
		require.Equal(t, before, string(after), name)
		require.NoFileExists(t, chart, name)
	}
}

// A program reads ratios by their names, so these are the same whatever could be measured.
func TestRatios_MissTheirGoal_WhereOursHasFailedOrTooLittleWasCompared(t *testing.T) {
	runs := func(failing int) (all []result.Run) {
		for repetition := range 3 {
			ours := result.Run{Scenario: "drain-kafka", Peer: "outbox", Repetition: repetition, Metrics: metrics{"rate_per_s": 30}}
			if repetition < failing {
				ours.Error = "lost"
			}
			theirs := ours
			theirs.Peer, theirs.Error, theirs.Metrics = "watermill-sql v3, 5 ms", "", metrics{"rate_per_s": 1}
			all = append(all, ours, theirs)
		}
		return all
	}
	for failing, met := range []bool{true, false, false, false} {
		all := ratios(runs(failing))
		require.Equal(t, "drain-kafka.watermill-sql-v3-5-ms.rate_per_s", all[0].Name)
		require.Equal(t, met, all[0].Met, "%d have failed", failing)
		require.Equal(t, 3-failing, all[0].Repetitions)
	}
}

func TestBitmap_TellsWhatWasPublished(t *testing.T) {
	const n = 130
	b, file := newBitmap(n), filepath.Join(t.TempDir(), "published")
	for i := range n {
		if i != 64 {
			b.set(i)
		}
		b.set(3) // again
	}
	b.set(-1)
	b.set(1 << 20)
	require.NoError(t, b.write(file))
	read := newBitmap(n)
	require.NoError(t, read.read(file))
	require.Equal(t, n-1, read.count())
	read.set(64)
	require.Equal(t, n, read.count())
	require.Error(t, newBitmap(10*n).read(file))
}
