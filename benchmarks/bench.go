package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/schollz/progressbar/v3"

	"github.com/watermill-outbox/outbox/benchmarks/measure"
	"github.com/watermill-outbox/outbox/benchmarks/peer"
	"github.com/watermill-outbox/outbox/benchmarks/result"
)

// runCommand runs scenarios.
type runCommand struct {
	Quick       bool     `help:"Only what the README shows, with smaller backlogs: under five minutes."`
	Only        []string `help:"Only these scenarios." placeholder:"SCENARIO"`
	Peers       []string `help:"Only these peers; this project is \"outbox\"." placeholder:"PEER" sep:"none"`
	Repetitions int      `default:"3" help:"How often each peer has its turn, at least 3 for a result worth showing."`
	Seed        int64    `default:"1" help:"For what is drawn: the order of turns, and how long silences are."`
	Profiles    string   `help:"A folder for profiles of processor time of all relays that are Go programs." type:"existingdir"`
	Out         string   `default:"results.json" help:"The file to write."`
}

type metrics = map[string]float64

// concurrency is how many messages each peer has on their way to the broker at once, where it leaves that to the user:
// the Forwarder's default.
const concurrency = 256

const partitions = 8

// bench is one run of the program.
type bench struct {
	env      peer.Env
	topic    *measure.Topic
	postgres *measure.Process // nil where the server is on another machine
	kafka    *measure.Process
	rng      *rand.Rand
	outboxes map[string]peer.Outbox
	profiles string // a folder; empty for none
	scratch  string // a folder for files of SQLite
	result   *result.Result
}

func (c *runCommand) Run() (err error) {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	scenarios, err := c.selected()
	if err != nil {
		return err
	}
	if err := result.CheckWritable(c.Out); err != nil {
		return err
	}
	b, err := newBench(ctx, c.Seed)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	began := time.Now()
	b.profiles, b.result.Mode = c.Profiles, "full"
	if c.Quick {
		b.result.Mode = "quick"
	}
	runErr := b.runAll(ctx, scenarios, c.Repetitions)
	if len(b.result.Runs) == 0 {
		return runErr
	}
	out := c.Out
	if runErr != nil { // it must not take the place of one that is whole
		b.result.Mode += ", interrupted"
		out += ".interrupted"
	}
	b.result.Took = time.Since(began).Seconds()
	b.result.Ratios = ratios(b.result.Runs)
	fmt.Print(b.result.Markdown()) //nolint:forbidigo // what the command is for
	return errors.Join(runErr, b.result.Write(out), failures(b.result.Runs))
}

// failures is an error if a turn has failed.
func failures(runs []result.Run) error {
	failed := 0
	for _, run := range runs {
		if run.Error != "" {
			failed++
		}
	}
	if failed == 0 {
		return nil
	}
	return fmt.Errorf("%d of %d turns have failed; the errors are above, and in the result", failed, len(runs))
}

func (c *runCommand) selected() ([]scenario, error) {
	all := allScenarios()
	if c.Quick {
		all = quickScenarios()
	}
	for _, name := range c.Only {
		if !slices.ContainsFunc(all, func(s scenario) bool { return s.name == name }) {
			var names []string
			for _, s := range all {
				names = append(names, s.name)
			}
			return nil, fmt.Errorf("there is no scenario %q among these: %s; --quick has some of all", name, strings.Join(names, ", "))
		}
	}
	for _, name := range c.Peers {
		if _, err := peerNamed(name); err != nil {
			return nil, err
		}
	}
	var chosen []scenario
	for _, s := range all {
		if len(c.Only) > 0 && !slices.Contains(c.Only, s.name) {
			continue
		}
		if len(c.Peers) > 0 {
			s.peers = slices.DeleteFunc(slices.Clone(s.peers), func(p peer.Peer) bool { return !slices.Contains(c.Peers, p.Name) })
		}
		chosen = append(chosen, s)
	}
	if c.Repetitions < 1 || !slices.ContainsFunc(chosen, func(s scenario) bool { return len(s.peers) > 0 }) {
		return nil, errors.New("these flags leave nothing to run")
	}
	return chosen, nil
}

func newBench(ctx context.Context, seed int64) (_ *bench, err error) {
	b := &bench{
		rng:      rand.New(rand.NewPCG(uint64(seed), 0)), //nolint:gosec // what is drawn is no secret
		outboxes: map[string]peer.Outbox{},
		result:   &result.Result{Started: time.Now(), Seed: seed, Peers: map[string]string{}},
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	databaseURL, err := createDatabase(ctx)
	if err != nil {
		return nil, err
	}
	b.topic, err = measure.NewTopic(ctx, peer.KafkaBrokers(), fmt.Sprintf("benchmarks-%d", time.Now().UnixMilli()), partitions)
	if err != nil {
		return nil, err
	}
	if b.scratch, err = os.MkdirTemp("", "outbox-benchmarks-"); err != nil {
		return nil, err
	}
	if b.env, err = connect(ctx, databaseURL, b.topic.Name, concurrency); err != nil {
		return nil, err
	}
	if _, err := b.env.Pool.Exec(ctx, peer.CreateOrders); err != nil {
		return nil, err
	}
	postgres := b.env.Pool.Config().ConnConfig
	b.postgres = localProcess(postgres.Host, int(postgres.Port))
	if broker, err := url.Parse("kafka://" + peer.KafkaBrokers()[0]); err == nil {
		if port, err := strconv.Atoi(broker.Port()); err == nil {
			b.kafka = localProcess(broker.Hostname(), port)
		}
	}
	return b, b.describe(ctx)
}

// localProcess returns nil where the server cannot be seen: figures of processor time are left out then.
func localProcess(host string, port int) *measure.Process {
	p, err := measure.ServerAt(host, port)
	if err != nil {
		fmt.Fprintf(os.Stderr, "the server on %s: %v\n", net.JoinHostPort(host, strconv.Itoa(port)), err)
		return nil
	}
	return &p
}

func (b *bench) close() error {
	var errs []error
	for name, o := range b.outboxes {
		if err := o.Close(); err != nil {
			errs = append(errs, fmt.Errorf("closing %s: %w", name, err))
		}
	}
	if b.env.Pool != nil {
		disconnect(b.env)
	}
	const patience = 10 * time.Second
	ctx, cancel := context.WithTimeout(context.Background(), patience) // also after an interrupt
	defer cancel()
	if b.topic != nil {
		errs = append(errs, b.topic.Close(ctx))
	}
	return errors.Join(append(errs, dropDatabase(ctx), os.RemoveAll(b.scratch))...)
}

// warmUp has Kafka, which is compiled while it runs, do something before it counts.
func (b *bench) warmUp(ctx context.Context) error {
	const n = 200_000
	o, err := b.outbox(ctx, peer.WatermillKafka)
	if err != nil {
		return err
	}
	_, err = drain{publisher: "kafka", shape: usual, n: n}.run(ctx, b, peer.WatermillKafka, o)
	return err
}

// runAll has each peer take its turn in each repetition, in an order that is drawn: none is always the one behind another,
// and pays for what that has left to the servers. What fails is in the result.
func (b *bench) runAll(ctx context.Context, scenarios []scenario, repetitions int) error {
	turns := 0
	for _, s := range scenarios {
		turns += len(s.peers) * repetitions
	}
	bar := progressbar.NewOptions(turns, progressbar.OptionSetWriter(os.Stderr), progressbar.OptionShowCount(),
		progressbar.OptionSetElapsedTime(true), progressbar.OptionFullWidth())
	if err := b.warmUp(ctx); err != nil {
		return fmt.Errorf("warming Kafka up: %w", err)
	}
	for _, s := range scenarios {
		for repetition := range repetitions {
			for _, i := range b.rng.Perm(len(s.peers)) {
				p := s.peers[i]
				bar.Describe(s.name + ", " + p.Name)
				run := result.Run{Scenario: s.name, Peer: p.Name, Repetition: repetition + 1, Started: time.Now()}
				if err := b.runOne(ctx, s, p, &run); err != nil {
					run.Error = err.Error()
					fmt.Fprintf(os.Stderr, "\n%s, %s: %v\n", s.name, p.Name, err)
				}
				if ctx.Err() != nil {
					return ctx.Err()
				}
				run.Took = time.Since(run.Started).Seconds()
				b.result.Runs = append(b.result.Runs, run)
				_ = bar.Add(1) // the terminal may be gone
			}
		}
	}
	return bar.Finish()
}

func (b *bench) runOne(ctx context.Context, s scenario, p peer.Peer, run *result.Run) error {
	b.result.Peers[p.Name] = p.About
	if p.New == nil { // it is something else than an outbox
		return s.run(ctx, b, p, nil, run)
	}
	o, err := b.outbox(ctx, p)
	if err != nil {
		return err
	}
	return errors.Join(s.run(ctx, b, p, o, run), b.clean(ctx, o)) // who is next shall not pay for its rows' vacuum
}

// outbox returns a peer's outbox, and makes it when it is asked for first.
func (b *bench) outbox(ctx context.Context, p peer.Peer) (peer.Outbox, error) {
	if o, ok := b.outboxes[p.Name]; ok {
		return o, nil
	}
	o, err := p.New(ctx, b.env)
	if err != nil {
		return nil, err
	}
	err = o.Create(ctx)
	if server, ok := o.(peer.Server); ok && err == nil {
		err = server.Start(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, o.Close())
	}
	b.outboxes[p.Name] = o
	return o, nil
}

// clean has the outbox and the topic be empty.
func (b *bench) clean(ctx context.Context, o peer.Outbox) error {
	if _, err := b.env.Pool.Exec(ctx, "TRUNCATE orders"); err != nil {
		return err
	}
	if err := o.Create(ctx); err != nil {
		return err
	}
	if err := b.topic.Empty(ctx); err != nil {
		return err
	}
	return b.awaitVacuum(ctx)
}

// awaitVacuum waits until autovacuum has nothing to do in the database, or half a minute: its processor time is the server's.
func (b *bench) awaitVacuum(ctx context.Context) error {
	const longest, every = 30 * time.Second, 50 * time.Millisecond
	for until := time.Now().Add(longest); time.Now().Before(until); {
		var busy bool
		err := b.env.Pool.QueryRow(ctx, `SELECT EXISTS (
			SELECT FROM pg_stat_activity WHERE backend_type = 'autovacuum worker' AND datname = current_database())`).Scan(&busy)
		if err != nil || !busy {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(every):
		}
	}
	return nil
}
