// Package abtest compares two ways to do the same in benchmarks. Each iteration runs both, one after the other, and what is
// reported are medians and the median of the ratios: a machine that is slow or busy is so for both.
package abtest

import (
	"slices"
	"testing"
	"time"
)

// Compare runs ours and baseline in turns, and either of them first in turns. Each returns how long its n operations took,
// without their preparation. The ratio is of rates: above 1, ours is the faster.
func Compare(b *testing.B, n int, ours, baseline func(b *testing.B) time.Duration) {
	b.Helper()
	var times, baselines, ratios []float64
	for b.Loop() {
		var a, c time.Duration
		if len(ratios)%2 == 0 {
			a, c = ours(b), baseline(b)
		} else {
			c, a = baseline(b), ours(b)
		}
		times, baselines = append(times, a.Seconds()), append(baselines, c.Seconds())
		ratios = append(ratios, c.Seconds()/a.Seconds())
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(n)/Median(times), "ours/s")
	b.ReportMetric(float64(n)/Median(baselines), "baseline/s")
	b.ReportMetric(Median(ratios), "ratio")
}

// Median sorts values and returns the one in the middle.
func Median[T ~float64 | ~int64](values []T) T { return Percentile(values, 0.5) }

// Percentile sorts values and returns the one below which a share p of them lies.
func Percentile[T ~float64 | ~int64](values []T, p float64) T {
	slices.Sort(values)
	return values[min(int(p*float64(len(values))), len(values)-1)]
}
