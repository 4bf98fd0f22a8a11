package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/schollz/progressbar/v3"

	"github.com/watermill-outbox/outbox/benchmarks/measure"
	"github.com/watermill-outbox/outbox/benchmarks/peer"
	"github.com/watermill-outbox/outbox/benchmarks/result"
)

// soakCommand is a steady load over a long time: one stream, which nothing interrupts, and a look at it in each window.
type soakCommand struct {
	Duration time.Duration `default:"1h" help:"How long, in all; at least ten windows. Tables reach their size with the second or third vacuum, which come by the minute: less than ten minutes tell little of them."`
	Window   time.Duration `default:"30s" help:"The time between two looks, which each figure is of."`
	Rate     int           `default:"1000" help:"Messages a second."`
	Seed     int64         `default:"1"`
	Out      string        `default:"soak.json" help:"The file to write, also when a window is bad or the run is interrupted."`
}

const (
	// leastWindows are one to warm up, and three thirds of three, of which a median is one that is not the worst.
	leastWindows = 10
	// stall is how long one message in a hundred may take in a window: ten times what the busiest machine has shown, and less
	// than a lease time, for which an instance does nothing that takes its server for another.
	stall = 2 * time.Second
	// overdue is how old a message of the backlog is when it is taken for lost.
	overdue = time.Minute
	// incomplete is what a result's mode says of a run that has ended early.
	incomplete = "soak, incomplete"
)

func (c *soakCommand) Run() (err error) {
	if c.Window <= 0 || c.Rate <= 0 || c.Duration < leastWindows*c.Window {
		return fmt.Errorf("a soak is of at least one message a second, and of %d windows: %v is less than that of %v",
			leastWindows, c.Duration, c.Window)
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	b, err := newBench(ctx, c.Seed)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	b.result.Mode = "soak"
	ended := c.soak(ctx, b)
	if ended != nil {
		if ctx.Err() != nil {
			ended = fmt.Errorf("interrupted after %d windows of %d", len(b.result.Runs), c.windows())
		}
		c.markIncomplete(b.result, ended)
	}
	b.result.Took = time.Since(b.result.Started).Seconds()
	if err := b.result.Write(c.Out); err != nil {
		return errors.Join(ended, err)
	}
	if ended != nil {
		return fmt.Errorf("%w; %s has what was measured until then", ended, c.Out)
	}
	limits, err := b.limits(ctx, c.Rate)
	if err != nil {
		return err
	}
	growths, err := judge(b.result.Runs, limits)
	for _, g := range growths {
		fmt.Println(g) //nolint:forbidigo // what the command is for
	}
	return err
}

func (c *soakCommand) windows() int { return int(c.Duration / c.Window) }

// markIncomplete says in the mode that the run has ended early, and by an error in the last run, why.
func (*soakCommand) markIncomplete(r *result.Result, why error) {
	r.Mode = incomplete
	if last := len(r.Runs) - 1; last >= 0 && r.Runs[last].Error != "" { // the bad window
		return
	}
	r.Runs = append(r.Runs, result.Run{
		Scenario: "soak", Peer: peer.Ours.Name, Repetition: len(r.Runs) + 1, Started: time.Now(), Error: why.Error(),
	})
}

// soak starts the relay, and ends it with what is told of it.
func (c *soakCommand) soak(ctx context.Context, b *bench) (err error) {
	o, err := b.outbox(ctx, peer.Ours)
	if err != nil {
		return err
	}
	b.result.Peers[peer.Ours.Name] = peer.Ours.About
	if err := b.clean(ctx, o); err != nil {
		return err
	}
	if err := b.topic.TakeLittleDisk(ctx); err != nil {
		return err
	}
	relay, err := b.startRelay(ctx, peer.Ours, o, "kafka")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, relay.stop(context.WithoutCancel(ctx))) }()
	s := &soaking{b: b, relay: relay, deliveries: measure.NewDeliveries()}
	return c.stream(ctx, s, o)
}

// soaking is a soak while it goes on. Only the goroutine that looks has last.
type soaking struct {
	b          *bench
	relay      *relayProcess
	deliveries *measure.Deliveries
	last       usage
}

// stream has the load, who reads the topic, and who looks, at once. What one of them meets ends all.
func (c *soakCommand) stream(ctx context.Context, s *soaking, o peer.Outbox) error {
	ctx, stop := context.WithCancelCause(ctx)
	var following, loading sync.WaitGroup
	following.Go(func() { // until the context ends
		err := s.b.topic.Follow(ctx, func(payload []byte, written time.Time) error {
			n, err := peer.NumberOf(payload)
			if err == nil { // the broker's clock has whole milliseconds, half of one too early
				s.deliveries.Written(n, written.Add(time.Millisecond/2))
			}
			return err
		})
		if err != nil {
			stop(err)
		}
	})
	begin := time.Now()
	loading.Go(func() { // for as long as the windows, or until the context ends
		if err := c.load(ctx, begin, o, s.deliveries); err != nil {
			stop(fmt.Errorf("committing: %w", err))
		}
	})
	err := c.look(ctx, s, begin)
	if err == nil {
		loading.Wait()
		err = s.settle(ctx, c.Window)
	}
	if cause := context.Cause(ctx); cause != nil && err != nil {
		err = cause // and not what came of it
	}
	stop(nil)
	loading.Wait()
	following.Wait()
	return err
}

// load commits at the rate, by a schedule that does not wait for who is late, until the last window ends.
func (c *soakCommand) load(ctx context.Context, begin time.Time, o peer.Outbox, deliveries *measure.Deliveries) error {
	every := time.Second / time.Duration(c.Rate)
	total := int(time.Duration(c.windows()) * c.Window / every)
	return onSchedule(ctx, begin, every, total, func(n int) error {
		if err := o.Commit(ctx, usual.Message(n)); err != nil {
			return err
		}
		deliveries.Committed(n, time.Now())
		return nil
	})
}

// look measures window after window while the load goes on, and returns at the first that is bad.
func (c *soakCommand) look(ctx context.Context, s *soaking, begin time.Time) (err error) {
	bar := progressbar.NewOptions(c.windows(), progressbar.OptionSetWriter(os.Stderr), progressbar.OptionSetElapsedTime(true))
	limits, err := s.b.limits(ctx, c.Rate)
	if err != nil {
		return err
	}
	if s.last, err = s.used(ctx); err != nil {
		return err
	}
	for i := range c.windows() {
		run := result.Run{Scenario: "soak", Peer: peer.Ours.Name, Repetition: i + 1, Started: time.Now()}
		s.relay.ResetPeak()
		if !sleepUntil(ctx, begin.Add(time.Duration(i+1)*c.Window)) {
			return context.Cause(ctx)
		}
		err := s.window(ctx, c.Rate, &run)
		if err == nil {
			err = bad(run, limits)
		}
		if ctx.Err() != nil { // that is why
			return context.Cause(ctx)
		}
		if err != nil {
			run.Error = err.Error()
		}
		run.Took = time.Since(run.Started).Seconds()
		s.b.result.Runs = append(s.b.result.Runs, run)
		if err != nil {
			return fmt.Errorf("window %d: %w", i+1, err)
		}
		m := run.Metrics
		bar.Describe(fmt.Sprintf("p50 %.1f ms, p99 %.1f ms, backlog %.0f, tables %.1f MB", m["p50_ms"], m["p99_ms"], m["backlog"], m["table_mb"]))
		_ = bar.Add(1) // the terminal may be gone
	}
	return bar.Finish()
}

// window measures the window that ends now, and trims the topic by what was read of it.
func (s *soaking) window(ctx context.Context, rate int, run *result.Run) error {
	run.Metrics = metrics{}
	if err := s.b.sizes(ctx, run.Metrics); err != nil {
		return err
	}
	peak, err := s.relay.Peak()
	if err != nil {
		return err
	}
	memory, err := s.relay.Resident()
	if err != nil {
		return err
	}
	run.Metrics["memory_peak_mb"], run.Metrics["memory_mb"] = peak, memory
	now, err := s.used(ctx)
	if err != nil {
		return err
	}
	w := s.deliveries.Next(now.at)
	now.since(s.last, w, rate, run.Metrics)
	s.last = now
	run.Metrics["backlog"], run.Metrics["oldest_s"] = float64(w.Backlog), w.Oldest.Seconds()
	run.Metrics["duplicates"] = float64(w.Duplicates)
	if len(w.Latencies) > 0 { // without one, their percentiles are missing, which makes the window bad
		histogram := newHistogram()
		for _, latency := range w.Latencies {
			record(histogram, latency)
		}
		if err := tell(histogram, run); err != nil {
			return err
		}
	}
	return s.b.topic.Trim(ctx)
}

// settle waits, when the load is over, until all is in Kafka, or for the given time; what comes twice comes soon.
func (s *soaking) settle(ctx context.Context, longest time.Duration) error {
	const stragglers = time.Second
	for until := time.Now().Add(longest); len(s.deliveries.Unwritten()) > 0 && time.Now().Before(until); {
		if !sleepUntil(ctx, time.Now().Add(sampling)) {
			return context.Cause(ctx)
		}
	}
	if !sleepUntil(ctx, time.Now().Add(stragglers)) {
		return context.Cause(ctx)
	}
	var errs []error
	if n := s.deliveries.Next(time.Now()).Duplicates; n > 0 {
		errs = append(errs, fmt.Errorf("after the load, %d messages came again", n))
	}
	if lost := s.deliveries.Unwritten(); len(lost) > 0 {
		var left int
		if err := s.b.env.Pool.QueryRow(ctx, "SELECT count(*) FROM outbox_messages").Scan(&left); err != nil {
			return err
		}
		errs = append(errs, fmt.Errorf("%v after the load, %d messages were not in Kafka, from message %d on; the outbox has %d, and what it does not have is lost",
			longest, len(lost), lost[0], left))
	}
	if unknown := s.deliveries.Uncommitted(); len(unknown) > 0 {
		errs = append(errs, fmt.Errorf("%d messages in Kafka were never committed, such as message %d", len(unknown), unknown[0]))
	}
	return errors.Join(errs...)
}

// usage is what was used until a time: seconds of processor time, and bytes of the write-ahead log.
type usage struct {
	at                          time.Time
	relay, database, kafka, wal float64
}

func (s *soaking) used(ctx context.Context) (u usage, err error) {
	if u.wal, err = s.b.walPosition(ctx); err != nil {
		return u, err
	}
	if u.relay, err = s.relay.CPU(); err != nil {
		return u, err
	}
	u.database, u.kafka = math.NaN(), math.NaN() // unknown
	if s.b.postgres != nil {
		if u.database, err = s.b.postgres.CPU(); err != nil {
			return u, err
		}
	}
	if s.b.kafka != nil {
		if u.kafka, err = s.b.kafka.CPU(); err != nil {
			return u, err
		}
	}
	u.at = time.Now()
	return u, nil
}

// since tells what was used in a window. What cannot be told is no number, and is left out.
func (u usage) since(last usage, w measure.Window, rate int, m metrics) {
	seconds := u.at.Sub(last.at).Seconds()
	perMillion := func(used float64) float64 { return used / float64(w.Written) * 1e6 }
	for metric, value := range map[string]float64{
		"rate_per_s":                 float64(w.Written) / seconds,
		"load_percent":               float64(w.Committed) / (seconds * float64(rate)) * 100,
		"wal_bytes":                  (u.wal - last.wal) / float64(w.Committed),
		"cpu_relay_s_per_million":    perMillion(u.relay - last.relay),
		"cpu_database_s_per_million": perMillion(u.database - last.database),
		"cpu_kafka_s_per_million":    perMillion(u.kafka - last.kafka),
	} {
		if !math.IsNaN(value) && !math.IsInf(value, 0) {
			m[metric] = value
		}
	}
}

// sizes has what is on disk: all tables of the outbox together, those that ought to have a handful of rows by themselves,
// and the write-ahead log.
func (b *bench) sizes(ctx context.Context, m metrics) error {
	var tables, indexes, slots, relays, wal float64
	err := b.env.Pool.QueryRow(ctx, `
		SELECT sum(pg_table_size(t)) / 1e6, sum(pg_indexes_size(t)) / 1e6,
		       pg_total_relation_size('outbox_slots') / 1e6, pg_total_relation_size('outbox_relays') / 1e6,
		       (SELECT sum(size) / 1e6 FROM pg_ls_waldir())
		FROM unnest('{outbox_messages,outbox_archive,outbox_slots,outbox_relays,outbox_processed}'::regclass[]) t`,
	).Scan(&tables, &indexes, &slots, &relays, &wal)
	if err != nil {
		return fmt.Errorf("asking for sizes, of which the log's takes the rights of pg_monitor: %w", err)
	}
	m["table_mb"], m["index_mb"], m["slots_mb"], m["relays_mb"], m["wal_on_disk_mb"] = tables, indexes, slots, relays, wal
	return nil
}

// limit is how much the median of the last third of the windows may be: by a factor more than that of the first, or by
// the floor, below which a figure is as good as none, or what is always free, whichever is most.
type limit struct {
	metric              string
	factor, floor, free float64
}

// limits are as tight as two cores let them be that are shared with who knows what: without any leak, a single window of
// ten seconds has had a p50 of 2.6 ms on a quiet machine and of 33 ms on one with a load of nine, and a message has cost
// the relay from 80 to 260 µs of processor time. Medians of thirds differ by less, as said below. What grows steadily from
// nothing is in the last third five times what it was in the first, and above each of these before long.
func (b *bench) limits(ctx context.Context, rate int) ([]limit, error) {
	var maxWAL float64
	err := b.env.Pool.QueryRow(ctx, "SELECT pg_size_bytes(current_setting('max_wal_size')) / 1e6").Scan(&maxWAL)
	limits := []limit{
		// Thirds of 80 s have had 4 and 11 ms, and 168 and 197 ms.
		{metric: "p50_ms", factor: 1.5, floor: 10},
		{metric: "p99_ms", factor: 1.5, floor: 50},
		// What waits is what comes in while a commit reaches the disk and Kafka: a tenth of a second's is no backlog.
		{metric: "backlog", factor: 1.5, floor: float64(rate) / 10},
		{metric: "oldest_s", factor: 1.5, floor: 0.1},
		// Space is freed by vacuums, a minute apart, and files keep the size that the latest has left: 3 and 7 MB.
		{metric: "table_mb", factor: 1.2, floor: 6},
		{metric: "index_mb", factor: 1.2, floor: 4},
		// A handful of rows each, which leases update.
		{metric: "slots_mb", factor: 1.2, floor: 1},
		{metric: "relays_mb", factor: 1.2, floor: 1},
		// 820 on a quiet machine and 1200 on a busy one: 1127 and 1120.
		{metric: "wal_bytes", factor: 1.4, floor: 100},
		// PostgreSQL keeps what it likes of the log up to max_wal_size, and somewhat more; a slot that holds it, all of it.
		{metric: "wal_on_disk_mb", factor: 1.2, free: 1.1 * maxWAL},
		// 51 and 52, which differ by when garbage was last collected.
		{metric: "memory_mb", factor: 1.1, floor: 6},
		{metric: "memory_peak_mb", factor: 1.1, floor: 6},
		// Batches are larger while the machine is busy, and a message costs less: a quiet time after a busy one is dearer.
		{metric: "cpu_relay_s_per_million", factor: 2},
		{metric: "cpu_database_s_per_million", factor: 1.6},
	}
	if b.postgres == nil { // its process cannot be seen, and nothing can be said of its time
		limits = slices.DeleteFunc(limits, func(l limit) bool { return l.metric == "cpu_database_s_per_million" })
	}
	return limits, err
}

// bad says what is wrong with a window by itself: a figure that is missing, a message that came twice or never.
func bad(run result.Run, limits []limit) error {
	var errs []error
	if run.Error != "" {
		errs = append(errs, errors.New(run.Error))
	}
	metrics := []string{"duplicates", "load_percent", "oldest_s"}
	for _, l := range limits {
		metrics = append(metrics, l.metric)
	}
	slices.Sort(metrics)
	for _, metric := range slices.Compact(metrics) {
		if v, ok := run.Metrics[metric]; !ok || math.IsNaN(v) || math.IsInf(v, 0) {
			errs = append(errs, fmt.Errorf("%s could not be measured", metric))
		}
	}
	if n := run.Metrics["duplicates"]; n > 0 {
		errs = append(errs, fmt.Errorf("%.0f messages came twice", n))
	}
	if p99 := run.Metrics["p99_ms"]; p99 > float64(stall.Milliseconds()) {
		errs = append(errs, fmt.Errorf("the relay stood still: one message in a hundred took more than %.0f ms", p99))
	}
	if age := run.Metrics["oldest_s"]; age > overdue.Seconds() {
		errs = append(errs, fmt.Errorf("a message that was committed %.0f s ago is not in Kafka", age))
	}
	return errors.Join(errs...)
}

// growth is how a metric has changed.
type growth struct {
	limit

	first, last float64
}

func (g growth) most() float64 { return max(g.first*g.factor, g.first+g.floor, g.free) }

func (g growth) String() string {
	return fmt.Sprintf("%-28s %10.2f, then %10.2f, at most %10.2f", g.metric, g.first, g.last, g.most())
}

// leastLoad is how much of the schedule has to be kept in the median: what was not committed has not been relayed.
const leastLoad = 95

// judge compares the last third of the windows with the first, without the one in which all begins. It returns an error
// if a window is bad, if the load was not what it says, or if anything has grown.
func judge(runs []result.Run, limits []limit) ([]growth, error) {
	if len(runs) < leastWindows {
		return nil, fmt.Errorf("%d windows are too few for a judgement: it takes %d", len(runs), leastWindows)
	}
	var errs []error
	for i, run := range runs {
		if err := bad(run, limits); err != nil {
			errs = append(errs, fmt.Errorf("window %d: %w", i+1, err))
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	runs = runs[1:]
	const thirds = 3
	median := func(of []result.Run, metric string) float64 {
		values := make([]float64, len(of))
		for i, run := range of {
			values[i] = run.Metrics[metric]
		}
		m, _, _ := result.Median(values)
		return m
	}
	first, last := runs[:len(runs)/thirds], runs[len(runs)-len(runs)/thirds:]
	if load := min(median(first, "load_percent"), median(last, "load_percent")); load < leastLoad {
		errs = append(errs, fmt.Errorf("the load was %.0f %% of what was asked for: the machine is too slow for it", load))
	}
	growths := make([]growth, len(limits))
	for i, l := range limits {
		growths[i] = growth{l, median(first, l.metric), median(last, l.metric)}
		if g := growths[i]; g.last > g.most() {
			errs = append(errs, fmt.Errorf("%s has grown from %.2f to %.2f, and may be %.2f", l.metric, g.first, g.last, g.most()))
		}
	}
	return growths, errors.Join(errs...)
}
