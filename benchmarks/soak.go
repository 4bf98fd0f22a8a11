package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/signal"
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
	Out      string        `default:"soak.json" help:"The file to write, with the verdict, also when the run has failed or is interrupted."`
}

// mostRate is how many messages a second the schedule tells apart well enough.
const mostRate = 1_000_000

// The modes of a result say how it has ended; the error in its last run says why.
const (
	passed     = "soak, passed"
	failed     = "soak, failed"
	incomplete = "soak, incomplete"
)

func (c *soakCommand) Run() (err error) {
	if err := c.check(); err != nil {
		return err
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	b, err := newBench(ctx, c.Seed)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	limits, err := b.limits(ctx, c.Rate)
	if err != nil {
		return err
	}
	mode, why := failed, c.soak(ctx, b, limits)
	if why != nil && ctx.Err() != nil {
		mode, why = incomplete, fmt.Errorf("interrupted after %d windows of %d", len(b.result.Runs), c.windows())
	}
	if why == nil {
		var growths []growth
		growths, why = judge(b.result.Runs, limits)
		for _, g := range growths {
			fmt.Println(g) //nolint:forbidigo // what the command is for
		}
	}
	if why == nil {
		mode = passed
	}
	conclude(b.result, mode, why)
	if err := b.result.Write(c.Out); err != nil {
		return errors.Join(why, err)
	}
	if why != nil {
		return fmt.Errorf("%w; %s has what was measured", why, c.Out)
	}
	return nil
}

// check refuses what cannot be run, before anything is begun.
func (c *soakCommand) check() error {
	if c.Window <= 0 || c.Rate <= 0 || c.windows() < leastWindows {
		return fmt.Errorf("a soak is of at least one message a second, and of %d windows: %v is less than that of %v",
			leastWindows, c.Duration, c.Window)
	}
	if c.Rate > mostRate {
		return fmt.Errorf("a soak is of at most %d messages a second: --rate is %d", mostRate, c.Rate)
	}
	if err := result.CheckWritable(c.Out); err != nil {
		return fmt.Errorf("--out could not be written: %w", err)
	}
	return nil
}

func (c *soakCommand) windows() int { return int(c.Duration / c.Window) }

func (c *soakCommand) lasts() time.Duration { return time.Duration(c.windows()) * c.Window }

// conclude puts the verdict into the result, and by an error in the last run, why it is not that all was well.
func conclude(r *result.Result, mode string, why error) {
	r.Mode, r.Took = mode, time.Since(r.Started).Seconds()
	if why == nil {
		return
	}
	if last := len(r.Runs) - 1; last >= 0 && r.Runs[last].Error != "" { // the bad window
		return
	}
	r.Runs = append(r.Runs, result.Run{
		Scenario: "soak", Peer: peer.Ours.Name, Repetition: len(r.Runs) + 1, Started: time.Now(), Error: why.Error(),
	})
}

// soak starts the relay, and ends it with what is told of it.
func (c *soakCommand) soak(ctx context.Context, b *bench, limits limits) (err error) {
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
	return c.stream(ctx, s, o, limits)
}

// soaking is a soak while it goes on. Only the goroutine that looks has last.
type soaking struct {
	b          *bench
	relay      *relayProcess
	deliveries *measure.Deliveries
	last       usage
}

// stream has the load, who reads the topic, and who looks, at once. What one of them meets ends all, and so does a time after
// which a commit or a query does not come back.
func (c *soakCommand) stream(ctx context.Context, s *soaking, o peer.Outbox, limits limits) error {
	const slack = time.Minute // when all is over that is waited for
	begin, longest := time.Now(), c.lasts()+c.Window+slack
	ctx, cancel := context.WithDeadlineCause(ctx, begin.Add(longest), fmt.Errorf("the soak has not ended after %v", longest))
	defer cancel()
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
	loading.Go(func() { // until the windows end or the context does, and the commits that have begun
		if err := c.load(ctx, begin, o, s.deliveries); err != nil {
			stop(fmt.Errorf("committing: %w", err))
		}
	})
	err := c.look(ctx, s, begin, limits)
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

// load commits at the rate, by a schedule that does not wait for who is late. When the last window ends, what is late is left
// out, and what has begun is waited for: of a commit that is cut off nobody knows whether it was one.
func (c *soakCommand) load(ctx context.Context, begin time.Time, o peer.Outbox, deliveries *measure.Deliveries) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	over, cancel := context.WithDeadline(ctx, begin.Add(c.lasts()))
	defer cancel()
	every := time.Second / time.Duration(c.Rate)
	_ = onSchedule(over, begin, every, int(c.lasts()/every), func(n int) error { // which may be that it is over
		err := o.Commit(ctx, usual.Message(n))
		if err != nil {
			stop(err)
			return err
		}
		deliveries.Committed(n, time.Now())
		return nil
	})
	return context.Cause(ctx)
}

// look measures window after window while the load goes on, and returns at the first that is bad.
func (c *soakCommand) look(ctx context.Context, s *soaking, begin time.Time, limits limits) (err error) {
	bar := progressbar.NewOptions(c.windows(), progressbar.OptionSetWriter(os.Stderr), progressbar.OptionSetElapsedTime(true))
	if s.last, err = s.used(ctx); err != nil {
		return err
	}
	for i := range c.windows() {
		run := result.Run{Scenario: "soak", Peer: peer.Ours.Name, Repetition: i + 1, Started: time.Now(), Metrics: metrics{}}
		s.relay.ResetPeak()
		err := s.watch(ctx, begin.Add(time.Duration(i+1)*c.Window), run.Metrics)
		if err == nil {
			err = s.window(ctx, c.Rate, &run)
		}
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

// watch has the most of each size until the window ends. Vacuums come about once in two windows, and how much there is at the
// ends of windows drifts with when they come.
func (s *soaking) watch(ctx context.Context, end time.Time, m metrics) error {
	const every = time.Second
	for {
		next := time.Now().Add(every)
		if next.After(end) {
			next = end
		}
		if !sleepUntil(ctx, next) {
			return context.Cause(ctx)
		}
		if err := s.b.sizes(ctx, m); err != nil {
			return err
		}
		if next.Equal(end) {
			return nil
		}
	}
}

// window measures the window that ends now, and trims the topic by what was read of it.
func (s *soaking) window(ctx context.Context, rate int, run *result.Run) error {
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

// sizes has the most of what was on disk: all tables of the outbox together, those that ought to have a handful of rows by
// themselves, and the write-ahead log, with what a replication slot of this database keeps of it, which ought to be nothing.
func (b *bench) sizes(ctx context.Context, m metrics) error {
	var tables, indexes, slots, relays, wal, held float64
	err := b.env.Pool.QueryRow(ctx, `
		SELECT sum(pg_table_size(t)) / 1e6, sum(pg_indexes_size(t)) / 1e6,
		       pg_total_relation_size('outbox_slots') / 1e6, pg_total_relation_size('outbox_relays') / 1e6,
		       (SELECT sum(size) / 1e6 FROM pg_ls_waldir()),
		       (SELECT coalesce(max(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)), 0) / 1e6
		        FROM pg_replication_slots WHERE database = current_database())
		FROM unnest('{outbox_messages,outbox_archive,outbox_slots,outbox_relays,outbox_processed}'::regclass[]) t`,
	).Scan(&tables, &indexes, &slots, &relays, &wal, &held)
	if err != nil {
		return fmt.Errorf("asking for sizes, of which the log's takes the rights of pg_monitor: %w", err)
	}
	for metric, size := range (metrics{
		"table_mb": tables, "index_mb": indexes, "slots_mb": slots, "relays_mb": relays, "wal_on_disk_mb": wal, "wal_held_mb": held,
	}) {
		m[metric] = max(m[metric], size)
	}
	return nil
}
