package main

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox/benchmarks/measure"
	"github.com/watermill-outbox/outbox/benchmarks/peer"
	"github.com/watermill-outbox/outbox/benchmarks/result"
)

// What cannot be divided is left out, and then missed.
func TestUsage_LeavesOutWhatCannotBeTold(t *testing.T) {
	begin := time.Now()
	last := usage{at: begin, relay: 1, database: math.NaN(), kafka: 2, wal: 1e6}
	now := usage{at: begin.Add(10 * time.Second), relay: 3, database: math.NaN(), kafka: 6, wal: 11e6}
	m := metrics{}
	now.since(last, measure.Window{Committed: 10_000, Written: 8_000}, 1_000, m)
	require.Equal(t, metrics{
		"rate_per_s": 800, "load_percent": 100, "wal_bytes": 1000,
		"cpu_relay_s_per_million": 250, "cpu_kafka_s_per_million": 500,
	}, m)
	m = metrics{}
	now.since(last, measure.Window{}, 1_000, m)
	require.Equal(t, metrics{"rate_per_s": 0, "load_percent": 0}, m)
}

func TestSoak_TheFileHasTheVerdict_AndWhy(t *testing.T) {
	concluded := func(runs []result.Run, mode string, why error) *result.Result {
		r := &result.Result{Mode: "soak", Started: time.Now(), Runs: runs}
		conclude(r, mode, why)
		file := filepath.Join(t.TempDir(), "soak.json")
		require.NoError(t, r.Write(file))
		read, err := result.Read(file)
		require.NoError(t, err)
		require.Equal(t, mode, read.Mode)
		return read
	}
	r := concluded(steadyRuns()[:2], failed, errors.New("table_mb has grown"))
	require.Len(t, r.Runs, 3)
	require.Equal(t, "table_mb has grown", r.Runs[2].Error)
	require.Equal(t, 3, r.Runs[2].Repetition)
	require.Contains(t, r.Markdown(), "table_mb has grown")
	require.Contains(t, r.Markdown(), "mode soak, failed")

	r = concluded([]result.Run{{Error: "a bad window"}}, incomplete, errors.New("interrupted"))
	require.Len(t, r.Runs, 1)
	r = concluded(steadyRuns()[:2], passed, nil)
	require.Len(t, r.Runs, 2)
}

// What cannot be run, or told of, is refused before anything is begun.
func TestSoak_RefusesWhatCannotBeRun(t *testing.T) {
	out := filepath.Join(t.TempDir(), "soak.json")
	for _, test := range []struct {
		soakCommand

		says string
	}{
		{soakCommand{Duration: 9 * time.Second, Window: time.Second, Rate: 1, Out: out}, "a soak is of at least"},
		{soakCommand{Duration: time.Minute, Window: 0, Rate: 1, Out: out}, "a soak is of at least"},
		{soakCommand{Duration: time.Minute, Window: time.Second, Rate: 0, Out: out}, "a soak is of at least"},
		{soakCommand{Duration: time.Minute, Window: math.MaxInt64, Rate: 1, Out: out}, "a soak is of at least"},
		{soakCommand{Duration: time.Minute, Window: time.Second, Rate: 2_000_000_000, Out: out}, "a soak is of at most 1000000 messages a second"},
		{soakCommand{Duration: time.Minute, Window: time.Second, Rate: 1, Out: t.TempDir()}, "--out could not be written"},
		{soakCommand{Duration: time.Minute, Window: time.Second, Rate: 1, Out: filepath.Join(out, "none")}, "--out could not be written"},
	} {
		require.ErrorContains(t, test.Run(), test.says)
		_, err := os.Stat(out)
		require.ErrorIs(t, err, os.ErrNotExist)
	}
}

// commits is an outbox that commits, and nothing else.
type commits func(ctx context.Context) error

func (c commits) Commit(ctx context.Context, _ ...peer.Message) error { return c(ctx) }
func (commits) Create(context.Context) error                          { return nil }
func (commits) Relay(context.Context, message.Publisher) error        { return nil }
func (commits) Close() error                                          { return nil }

// A load that cannot be kept up leaves the rest out when its time is over, and cuts no commit off.
func TestSoak_TheLoadEndsWhenItsTimeIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, begin, deliveries := &soakCommand{Duration: 10 * time.Second, Window: time.Second, Rate: 1000}, time.Now(), measure.NewDeliveries()
		const slow = 1500 * time.Millisecond
		err := c.load(t.Context(), begin, commits(func(ctx context.Context) error {
			time.Sleep(slow)
			return ctx.Err()
		}), deliveries)
		require.NoError(t, err)
		require.Less(t, time.Since(begin), c.Duration+slow)
		require.Greater(t, time.Since(begin), c.Duration)
		require.Equal(t, 7*committers, deliveries.Next(time.Now()).Committed)
	})
}

// Also where it is the last commit that fails, when the schedule is over.
func TestSoak_TheLoadTellsWhatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, begin := &soakCommand{Duration: 10 * time.Second, Window: time.Second, Rate: 1}, time.Now()
		broke := errors.New("it broke")
		require.ErrorIs(t, c.load(t.Context(), begin, commits(func(context.Context) error {
			time.Sleep(2 * time.Second)
			if time.Since(begin) > c.Duration {
				return broke
			}
			return nil
		}), measure.NewDeliveries()), broke)
	})
}

func TestSoak_TheLoadEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, stopped := &soakCommand{Duration: 10 * time.Second, Window: time.Second, Rate: 10}, errors.New("stopped")
		ctx, stop := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { stop(stopped) })
		require.ErrorIs(t, c.load(ctx, time.Now(), commits(func(ctx context.Context) error { // one that hangs
			<-ctx.Done()
			return ctx.Err()
		}), measure.NewDeliveries()), stopped)
	})
}
