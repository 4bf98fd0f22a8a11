package main

import (
	"cmp"
	"slices"

	"github.com/watermill-outbox/outbox/benchmarks/peer"
	"github.com/watermill-outbox/outbox/benchmarks/result"
)

// goal is what a ratio of a metric of this project to a peer's is to be.
type goal struct {
	scenario, metric string
	theirs           peer.Peer
	goal             result.Goal
}

// goals are those that the project has set itself, with the reason in its issue tracker and not in what is reached.
func goals() []goal {
	var all []goal
	add := func(scenario, metric string, g result.Goal, theirs ...peer.Peer) {
		for _, p := range theirs {
			all = append(all, goal{scenario, metric, p, g})
		}
	}
	below := result.Goal{Below: 1}
	add("drain-kafka", "rate_per_s", result.Goal{AtLeast: 1.8}, peer.Debezium)
	add("drain-kafka", "rate_per_s", result.Goal{AtLeast: 25}, peer.WatermillSQL3Fast)
	add("drain-kafka", "rate_per_s", result.Goal{AtLeast: 0.7}, peer.WatermillKafka)
	add("drain-kafka", "cpu_s_per_million", below, peer.Debezium, peer.WatermillSQL3Fast, peer.WatermillSQL4Fast,
		peer.WatermillSQL4QueueFast, peer.River, peer.SkipLockedStatus, peer.SkipLockedDelete)
	add("drain-noop", "rate_per_s", result.Goal{AtLeast: 8}, peer.WatermillSQL3Fast, peer.SkipLockedStatus)
	add("drain-noop", "rate_per_s", result.Goal{AtLeast: 1.5}, peer.SkipLockedDelete)
	for _, metric := range []string{"p50_ms", "p99_ms", "cpu_s_per_million"} {
		add("latency-500", metric, below, peer.Debezium, peer.WatermillSQL3Fast)
	}
	for _, scenario := range []string{"caller-1", "caller-16", "caller-64"} {
		for _, metric := range []string{"p50_ms", "p99_ms", "wal_bytes"} {
			add(scenario, metric, result.Goal{AtMost: 1.25}, peer.PlainInsert)
		}
		add(scenario, "p50_ms", below, peer.RiverDefault, peer.WatermillSQL3, peer.WatermillSQL4, peer.WatermillSQL4Queue)
	}
	return all
}

// project has the peer that is ours, in scenarios where that is something else than an outbox.
var project = map[string]string{
	"consumer": "Deduplicator", "sqlite": "outbox, SQLite", "sqlite-caller": "outbox, SQLite",
}

// compared are the metrics that are compared with each peer.
var compared = []string{"rate_per_s", "p50_ms", "p99_ms", "cpu_s_per_million", "wal_bytes", "handlers_per_s"}

// ratios compares what was measured: first what there are goals for, in their order, and then all else. A comparison that was
// not to be made in these runs is left out; one that was, and for which there are no figures, has missed its goal, and so has
// one in which ours has failed.
func ratios(runs []result.Run) []result.Ratio {
	find := func(scenario, peer string, failed bool) bool {
		return slices.ContainsFunc(runs, func(r result.Run) bool {
			return r.Scenario == scenario && r.Peer == peer && (!failed || r.Error != "")
		})
	}
	all := []result.Ratio{}
	for _, g := range goals() {
		if !find(g.scenario, peer.Ours.Name, false) || !find(g.scenario, g.theirs.Name, false) {
			continue
		}
		r, ok := result.Compare(runs, g.scenario, g.metric, peer.Ours.Name, g.theirs.Name)
		if !ok {
			r = result.NewRatio(g.scenario, g.metric, peer.Ours.Name, g.theirs.Name)
		}
		r = r.WithGoal(g.goal)
		r.Met = r.Met && ok && !find(g.scenario, peer.Ours.Name, true)
		all = append(all, r)
	}
	all = append(all, backlogRatios(runs)...)
	for _, run := range runs {
		ours := cmp.Or(project[run.Scenario], peer.Ours.Name)
		for _, metric := range compared {
			r, ok := result.Compare(runs, run.Scenario, metric, ours, run.Peer)
			if ok && run.Peer != ours && !slices.ContainsFunc(all, func(other result.Ratio) bool { return other.Name == r.Name }) {
				all = append(all, r)
			}
		}
	}
	return all
}

// backlogRatios are of ten million messages: the last million against the first, and memory against its bound.
func backlogRatios(runs []result.Run) []result.Ratio {
	var all []result.Ratio
	const megabytes = 150
	of := result.Result{Runs: runs}
	add := func(metric, theirs string, g result.Goal, divisor float64) {
		values := of.Values("backlog-10m", peer.Ours.Name, metric)
		if len(values) == 0 {
			return
		}
		r := result.Ratio{
			Name: "backlog-10m." + metric, Scenario: "backlog-10m", Metric: metric, Ours: peer.Ours.Name, Theirs: theirs,
			Repetitions: len(values),
		}
		r.Value, r.Low, r.High = result.Median(values)
		r.Value, r.Low, r.High = r.Value/divisor, r.Low/divisor, r.High/divisor
		all = append(all, r.WithGoal(g))
	}
	add("last_to_first_million", "its first million", result.Goal{AtLeast: 0.9, AtMost: 1.1}, 1)
	add("memory_peak_mb", "150 MB", result.Goal{Below: 1}, megabytes)
	return all
}
