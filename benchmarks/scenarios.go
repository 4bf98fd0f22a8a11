package main

import (
	"context"
	"maps"
	"time"

	"github.com/watermill-outbox/outbox/benchmarks/consumer"
	"github.com/watermill-outbox/outbox/benchmarks/embedded"
	"github.com/watermill-outbox/outbox/benchmarks/peer"
	"github.com/watermill-outbox/outbox/benchmarks/result"
)

// scenario is something to measure with each of some peers.
type scenario struct {
	name  string
	peers []peer.Peer
	run   func(ctx context.Context, b *bench, p peer.Peer, o peer.Outbox, run *result.Run) error
}

// usual is what messages are like unless the scenario is about that.
var usual = peer.Shape{Size: 256, Keys: peer.Uniform}

// slow are the peers that publish one message after another or do more for each than others do, with the share of a
// backlog that they get, so that no repetition takes long.
func slow(n int, share float64, peers ...peer.Peer) map[string]int {
	few := map[string]int{}
	for _, p := range peers {
		few[p.Name] = int(float64(n) * share)
	}
	return few
}

func join(all ...map[string]int) map[string]int {
	joined := map[string]int{}
	for _, m := range all {
		maps.Copy(joined, m)
	}
	return joined
}

// quickScenarios are those of the README.
func quickScenarios() []scenario {
	const (
		n     = 220_000
		lasts = 3 * time.Second
	)
	return []scenario{
		drain{publisher: "kafka", shape: usual, n: n, slower: join(
			slow(n, 0.04, peer.WatermillSQL3Fast), slow(n, 0.25, peer.SkipLockedStatus, peer.SkipLockedDelete),
		)}.among("drain-kafka", peer.Ours, peer.Debezium, peer.WatermillSQL3Fast, peer.SkipLockedStatus,
			peer.SkipLockedDelete, peer.WatermillKafka, peer.OursOverFranz),
		drain{publisher: "noop", shape: usual, n: n, slower: slow(n, 0.25, peer.WatermillSQL3Fast, peer.SkipLockedStatus)}.among("drain-noop",
			peer.Ours, peer.WatermillSQL3Fast, peer.SkipLockedStatus, peer.SkipLockedDelete),
		latency{publisher: "kafka", perSecond: 500, perCommit: 1, lasts: lasts, shape: usual}.among("latency-500",
			peer.Ours, peer.Debezium, peer.WatermillSQL3Fast, peer.River),
		caller{clients: 16, lasts: lasts / 2, shape: usual}.among("caller-16",
			peer.Ours, peer.PlainInsert, peer.WatermillSQL3, peer.WatermillSQL4, peer.WatermillSQL4Queue, peer.RiverDefault),
	}
}

// allScenarios are all.
func allScenarios() []scenario {
	const (
		n     = 300_000
		lasts = 5 * time.Second
	)
	sequential := []peer.Peer{
		peer.WatermillSQL3, peer.WatermillSQL3Fast, peer.WatermillSQL4, peer.WatermillSQL4Fast,
		peer.WatermillSQL4Queue, peer.WatermillSQL4QueueFast,
	}
	few := slow(n, 0.03, sequential...)
	half := slow(n, 0.25, peer.SkipLockedStatus, peer.SkipLockedDelete, peer.River)
	all := []scenario{
		drain{publisher: "kafka", shape: usual, n: n, slower: join(few, half)}.among("drain-kafka",
			peer.Ours, peer.Debezium, peer.WatermillSQL3, peer.WatermillSQL3Fast, peer.WatermillSQL4, peer.WatermillSQL4Fast,
			peer.WatermillSQL4Queue, peer.WatermillSQL4QueueFast, peer.River, peer.SkipLockedStatus, peer.SkipLockedDelete, peer.WatermillKafka, peer.FranzGo, peer.OursOverFranz),
		drain{publisher: "noop", shape: usual, n: n, slower: slow(n, 0.25, append(sequential, peer.SkipLockedStatus, peer.River)...)}.among("drain-noop",
			peer.Ours, peer.WatermillSQL3, peer.WatermillSQL3Fast, peer.WatermillSQL4Fast, peer.WatermillSQL4QueueFast,
			peer.River, peer.SkipLockedStatus, peer.SkipLockedDelete),
	}
	all = append(all, steadyScenarios(lasts)...)
	all = append(all, callerScenarios(lasts/2)...)
	all = append(all, drainScenarios(n)...)
	return append(all, backlogScenario(), consumerScenario(lasts/2), embeddedDrain(n/2), embeddedCaller(lasts/2))
}

// steadyScenarios are messages that come at a rate, or one at a time. At 20,000 a second watermill-sql and river fall
// behind without end.
func steadyScenarios(lasts time.Duration) []scenario {
	at := func(perSecond, perCommit int) latency {
		return latency{publisher: "kafka", perSecond: perSecond, perCommit: perCommit, lasts: lasts, shape: usual}
	}
	noop := at(5_000, 10)
	noop.publisher = "noop"
	return []scenario{
		at(50, 1).among("latency-50",
			peer.Ours, peer.Debezium, peer.WatermillSQL3Fast, peer.WatermillSQL4QueueFast, peer.River, peer.SkipLockedDelete),
		at(500, 1).among("latency-500",
			peer.Ours, peer.Debezium, peer.WatermillSQL3, peer.WatermillSQL3Fast, peer.WatermillSQL4, peer.WatermillSQL4Fast,
			peer.WatermillSQL4QueueFast, peer.River, peer.SkipLockedStatus, peer.SkipLockedDelete),
		at(5_000, 10).among("latency-5000", peer.Ours, peer.Debezium, peer.River, peer.SkipLockedDelete),
		at(20_000, 10).among("latency-20000", peer.Ours, peer.Debezium, peer.SkipLockedDelete),
		noop.among("steady-noop", peer.Ours, peer.WatermillSQL3Fast, peer.River, peer.SkipLockedStatus, peer.SkipLockedDelete),
		silence{lasts: 2 * time.Second, times: 3}.among("silence", peer.Ours, peer.Debezium, peer.WatermillSQL3,
			peer.WatermillSQL3Fast, peer.WatermillSQL4QueueFast, peer.River, peer.SkipLockedDelete),
	}
}

func callerScenarios(lasts time.Duration) []scenario {
	peers := []peer.Peer{
		peer.Ours, peer.PlainInsert, peer.NoMessage, peer.WatermillSQL3, peer.WatermillSQL4, peer.WatermillSQL4Queue, peer.River,
		peer.RiverDefault,
	}
	return []scenario{
		caller{clients: 1, lasts: lasts, shape: usual}.among("caller-1", peers...),
		caller{clients: 16, lasts: lasts / 2, shape: usual}.among("caller-16", peers...),
		caller{clients: 64, lasts: lasts, shape: usual}.among("caller-64", peers...),
	}
}

// drainScenarios are backlogs with something special about them.
func drainScenarios(n int) []scenario {
	shaped := func(size int, keys peer.Keys, n int) drain {
		return drain{publisher: "kafka", shape: peer.Shape{Size: size, Keys: keys}, n: n}
	}
	instances := func(k int) drain { return drain{publisher: "noop", shape: usual, n: n, instances: k} }
	few := n / 20
	hot := shaped(usual.Size, peer.One, few)
	hot.slower = slow(few, 0.25, peer.Ours, peer.WatermillSQL3Fast)
	return []scenario{
		drain{publisher: "noop", shape: usual, n: n / 2, held: true}.among("held", peer.Ours, peer.SkipLockedStatus, peer.SkipLockedDelete),
		drain{publisher: "slow", shape: usual, n: n / 4, slower: slow(n, 0.002, peer.WatermillSQL3Fast)}.among("slow-broker",
			peer.Ours, peer.WatermillSQL3Fast, peer.River, peer.SkipLockedDelete),
		hot.among("hot-key", peer.Ours, peer.Debezium, peer.WatermillSQL3Fast),
		shaped(usual.Size, peer.Zipf, n/4).among("zipf", peer.Ours, peer.Debezium, peer.SkipLockedDelete),
		shaped(100, peer.Uniform, n/2).among("payload-100", peer.Ours, peer.Debezium, peer.SkipLockedDelete),
		shaped(1_000, peer.Uniform, n/2).among("payload-1k", peer.Ours, peer.Debezium, peer.SkipLockedDelete),
		shaped(100_000, peer.Uniform, n/100).among("payload-100k", peer.Ours, peer.Debezium, peer.SkipLockedDelete),
		instances(1).among("instances-1", peer.Ours, peer.SkipLockedDelete),
		instances(2).among("instances-2", peer.Ours, peer.SkipLockedDelete),
		instances(4).among("instances-4", peer.Ours, peer.SkipLockedDelete),
	}
}

// backlogScenario compares its millions.
func backlogScenario() scenario {
	const n = 10_000_000
	return drain{publisher: "noop", shape: peer.Shape{Size: 100, Keys: peer.Uniform}, n: n}.among("backlog-10m", peer.Ours)
}

func (d drain) among(name string, peers ...peer.Peer) scenario {
	return scenario{name, peers, func(ctx context.Context, b *bench, p peer.Peer, o peer.Outbox, run *result.Run) (err error) {
		run.Metrics, err = d.run(ctx, b, p, o)
		return err
	}}
}

func (l latency) among(name string, peers ...peer.Peer) scenario {
	return scenario{name, peers, l.run}
}

func (s silence) among(name string, peers ...peer.Peer) scenario {
	return scenario{name, peers, s.run}
}

func (c caller) among(name string, peers ...peer.Peer) scenario {
	return scenario{name, peers, c.run}
}

// consumerScenario and the two behind it compare ways to do something in this process: a Peer without an outbox stands
// for each.
func consumerScenario(lasts time.Duration) scenario {
	const clients = 16
	ways, byName := []peer.Peer{}, map[string]consumer.Way{}
	for _, way := range consumer.Ways {
		ways, byName[way.Name] = append(ways, peer.Peer{Name: way.Name, About: way.About}), way
	}
	return scenario{"consumer", ways, func(ctx context.Context, b *bench, p peer.Peer, _ peer.Outbox, run *result.Run) (err error) {
		run.Metrics, err = consumer.Measure(ctx, b.env.Pool, byName[p.Name], clients, lasts)
		return err
	}}
}

func embeddedDrain(n int) scenario {
	return inSQLite("sqlite", func(ctx context.Context, dir string, way embedded.Way) (metrics, error) {
		return embedded.MeasureDrain(ctx, dir, way, n)
	})
}

func embeddedCaller(lasts time.Duration) scenario {
	return inSQLite("sqlite-caller", func(ctx context.Context, dir string, way embedded.Way) (metrics, error) {
		return embedded.MeasureCaller(ctx, dir, way, lasts)
	})
}

func inSQLite(name string, measure func(ctx context.Context, dir string, way embedded.Way) (metrics, error)) scenario {
	ways, byName := []peer.Peer{}, map[string]embedded.Way{}
	for _, way := range embedded.Ways {
		of := peer.Peer{Name: way.Name + ", SQLite", About: way.About}
		ways, byName[of.Name] = append(ways, of), way
	}
	return scenario{name, ways, func(ctx context.Context, b *bench, p peer.Peer, _ peer.Outbox, run *result.Run) (err error) {
		run.Metrics, err = measure(ctx, b.scratch, byName[p.Name])
		return err
	}}
}
