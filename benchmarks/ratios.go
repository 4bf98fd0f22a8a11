package main

import (
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

// ratios compares what was measured, in the order of the goals. A comparison that was not to be made in these runs is left
// out; one that was, and for which there are no figures, has missed its goal.
func ratios(runs []result.Run) []result.Ratio {
	ran := func(scenario string, p peer.Peer) bool {
		return slices.ContainsFunc(runs, func(r result.Run) bool { return r.Scenario == scenario && r.Peer == p.Name })
	}
	var all []result.Ratio
	for _, g := range goals() {
		if r, ok := result.Compare(runs, g.scenario, g.metric, peer.Ours.Name, g.theirs.Name); ok {
			all = append(all, r.WithGoal(g.goal))
		} else if ran(g.scenario, peer.Ours) && ran(g.scenario, g.theirs) {
			r = result.Ratio{
				Name: g.scenario + "." + g.theirs.Name + "." + g.metric, Scenario: g.scenario, Metric: g.metric,
				Ours: peer.Ours.Name, Theirs: g.theirs.Name,
			}.WithGoal(g.goal)
			r.Met = false
			all = append(all, r)
		}
	}
	return append(all, backlogRatios(runs)...)
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
		r := result.Ratio{Name: "backlog-10m." + metric, Scenario: "backlog-10m", Metric: metric, Ours: peer.Ours.Name, Theirs: theirs}
		r.Value, r.Low, r.High = result.Median(values)
		r.Value, r.Low, r.High = r.Value/divisor, r.Low/divisor, r.High/divisor
		all = append(all, r.WithGoal(g))
	}
	add("last_to_first_million", "its first million", result.Goal{AtLeast: 0.9, AtMost: 1.1}, 1)
	add("memory_peak_mb", "150 MB", result.Goal{Below: 1}, megabytes)
	return all
}
