// Package abtest compares two ways to do the same in benchmarks. Each iteration runs both, one after the other, and what is
// reported are medians and the median of the ratios: a machine that is slow or busy is so for both.
package abtest

import (
	"os"
	"slices"
	"testing"
	"time"
)

// Compare runs ours and baseline in turns, and either of them first in turns. Each returns how long its n operations took,
// without their preparation. The ratio is of rates: above 1, ours is the faster. It is held to the target.
func Compare(b *testing.B, n int, target float64, ours, baseline func(b *testing.B) time.Duration) {
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
	HoldTo(b, "ratio", target, Median(ratios) >= target)
}

// HoldTo reports the target of a metric. With OUTBOX_BENCH_STRICT=1, which is for machines that do nothing else, a
// benchmark that misses it fails.
func HoldTo(b *testing.B, what string, target float64, met bool) {
	b.Helper()
	b.ReportMetric(target, what+"-target")
	if !met && os.Getenv("OUTBOX_BENCH_STRICT") == "1" {
		b.Errorf("%s misses its target of %v", what, target)
	}
}

// Median sorts values and returns the one in the middle.
func Median[T ~float64 | ~int64](values []T) T { return Percentile(values, 0.5) }

// Percentile sorts values and returns the one below which a share p of them lies.
func Percentile[T ~float64 | ~int64](values []T, p float64) T {
	slices.Sort(values)
	return values[min(int(p*float64(len(values))), len(values)-1)]
}
