package measure_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox/benchmarks/measure"
)

func TestDeliveries_CountABacklogUntilItIsWritten(t *testing.T) {
	d, start := measure.NewDeliveries(), time.Now()
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	for n := range 200 {
		d.Committed(n, at(n))
	}
	for n := range 150 {
		d.Written(n, at(n+5))
	}
	w := d.Next(at(300))
	require.Equal(t, 200, w.Committed)
	require.Equal(t, 150, w.Written)
	require.Equal(t, 50, w.Backlog)
	require.Equal(t, 150*time.Millisecond, w.Oldest)
	require.Len(t, w.Latencies, 150)
	require.Equal(t, 5*time.Millisecond, w.Latencies[0])

	for n := 150; n < 199; n++ {
		d.Written(n, at(400))
	}
	w = d.Next(at(500))
	require.Equal(t, measure.Window{Written: 49, Latencies: w.Latencies, Backlog: 1, Oldest: 301 * time.Millisecond}, w)
	require.Equal(t, 250*time.Millisecond, w.Latencies[0])
	require.Equal(t, []int{199}, d.Unwritten())
	require.Empty(t, d.Uncommitted())
}

func TestDeliveries_TellDuplicates_AlsoOfEarlierWindows(t *testing.T) {
	d, now := measure.NewDeliveries(), time.Now()
	for _, n := range []int{0, 63, 64, 1_000_000} {
		d.Committed(n, now)
		d.Written(n, now)
	}
	d.Written(64, now)
	require.Equal(t, 1, d.Next(now).Duplicates)
	d.Written(63, now)
	d.Written(1_000_000, now)
	w := d.Next(now)
	require.Equal(t, 2, w.Duplicates)
	require.Zero(t, w.Written)
}

func TestDeliveries_MatchWhatIsReadBeforeItsCommitReturns(t *testing.T) {
	d, now := measure.NewDeliveries(), time.Now()
	d.Written(7, now)
	require.Equal(t, []int{7}, d.Uncommitted())
	require.Zero(t, d.Next(now).Backlog)
	d.Committed(7, now.Add(time.Millisecond))
	w := d.Next(now.Add(time.Second))
	require.Equal(t, []time.Duration{-time.Millisecond}, w.Latencies)
	require.Zero(t, w.Backlog)
	require.Empty(t, d.Uncommitted())
}
