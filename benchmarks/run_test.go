package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox/benchmarks/peer"
	"github.com/watermill-outbox/outbox/benchmarks/result"
)

// TestMain is also the relay that scenarios start as a process of its own: they start the program that they are.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "relay" {
		main()
		return
	}
	os.Exit(m.Run())
}

// All peers that are Go programs, all kinds of scenarios, small.
func TestRun_MeasuresEachPeerInEachKindOfScenario(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes a minute")
	}
	const (
		n     = 3_000
		many  = 300_000 // for whom less is through between two looks
		lasts = 200 * time.Millisecond
	)
	relays := []peer.Peer{
		peer.Ours, peer.WatermillSQL3Fast, peer.WatermillSQL4Fast, peer.WatermillSQL4QueueFast, peer.River,
		peer.SkipLockedStatus, peer.SkipLockedDelete,
	}
	callers := append([]peer.Peer{peer.NoMessage, peer.PlainInsert}, relays...)
	scenarios := []scenario{
		drain{publisher: "noop", shape: usual, n: 10 * n}.among("drain-noop", relays...),
		drain{publisher: "kafka", shape: usual, n: 3 * n}.among("drain-kafka", peer.Ours, peer.River, peer.WatermillKafka),
		drain{publisher: "kafka", shape: usual, n: many}.among("ceiling", peer.FranzGo),
		drain{publisher: "noop", shape: peer.Shape{Size: 1000, Keys: peer.Zipf}, n: 10 * n, held: true, instances: 2}.among("held", peer.Ours),
		drain{publisher: "slow", shape: peer.Shape{Size: 100, Keys: peer.One}, n: 3 * n}.among("slow", peer.SkipLockedDelete),
		latency{publisher: "kafka", perSecond: 200, perCommit: 2, lasts: lasts, shape: usual}.among("latency", peer.Ours, peer.WatermillSQL3Fast),
		latency{publisher: "noop", perSecond: 200, perCommit: 2, lasts: lasts, shape: usual}.among("steady", peer.Ours),
		silence{lasts: lasts, times: 1}.among("silence", peer.Ours),
		caller{clients: 2, lasts: lasts, shape: usual}.among("caller", callers...),
		consumerScenario(lasts), embeddedDrain(n), embeddedCaller(lasts),
	}
	b, err := newBench(t.Context(), 1)
	require.NoError(t, err)
	err = b.runAll(t.Context(), scenarios, 1)
	require.NoError(t, b.close())
	require.NoError(t, err)
	for _, run := range b.result.Runs {
		t.Logf("%s, %s: %.1f s", run.Scenario, run.Peer, run.Took)
		require.Empty(t, run.Error, "%s, %s", run.Scenario, run.Peer)
		require.NotEmpty(t, run.Metrics, "%s, %s", run.Scenario, run.Peer)
		if rate, ok := run.Metrics["rate_per_s"]; ok {
			require.Positive(t, rate, "%s, %s", run.Scenario, run.Peer)
		}
		if strings.HasPrefix(run.Scenario, "drain") || run.Scenario == "latency" {
			require.Contains(t, run.Metrics, "duplicates", "%s, %s", run.Scenario, run.Peer)
		}
		require.Zero(t, run.Metrics["duplicates"], "%s, %s", run.Scenario, run.Peer)
		if run.Scenario == "latency" {
			require.NotEmpty(t, run.Latencies)
		}
	}
	file := filepath.Join(t.TempDir(), "result.json")
	b.result.Mode = "quick"
	require.NoError(t, b.result.Write(file))
	read, err := result.Read(file)
	require.NoError(t, err)
	require.Contains(t, read.Markdown(), "SKIP LOCKED, delete")
}

// What goals are about is measured, and by both sides.
func TestGoals_AreAboutWhatIsMeasured(t *testing.T) {
	measured := map[string]bool{}
	for _, s := range allScenarios() {
		for _, p := range s.peers {
			require.False(t, measured[s.name+" "+p.Name], "%s has %s twice", s.name, p.Name)
			measured[s.name+" "+p.Name] = true
			require.NotEmpty(t, p.About, p.Name)
		}
	}
	for _, g := range goals() {
		require.True(t, measured[g.scenario+" "+g.theirs.Name], "%s is not measured with %s", g.scenario, g.theirs.Name)
		require.True(t, measured[g.scenario+" "+peer.Ours.Name], "%s is not measured with this project", g.scenario)
	}
}
