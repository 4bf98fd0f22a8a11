package result

import (
	"fmt"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Latency is how long the messages of all repetitions of one peer in one scenario took, in milliseconds.
type Latency struct {
	Messages int64
	P50      float64
	P90      float64
	P99      float64
	P999     float64
	Max      float64
}

// Latency merges the histograms of all repetitions of one peer in one scenario, so that its high percentiles are of as
// many messages as there are. It returns false where there is no histogram or nothing in them, and an error where a
// histogram cannot be read.
func (r *Result) Latency(scenario, peer string) (Latency, bool, error) {
	var all []*hdrhistogram.Histogram
	highest := int64(2) // the least that a histogram can have
	for _, run := range r.Runs {
		if run.Scenario != scenario || run.Peer != peer || run.Error != "" || run.Latencies == "" {
			continue
		}
		h, err := hdrhistogram.Decode([]byte(run.Latencies))
		if err != nil {
			return Latency{}, false, fmt.Errorf("latencies of repetition %d of %s with %s: %w", run.Repetition, scenario, peer, err)
		}
		all = append(all, h)
		highest = max(highest, h.HighestTrackableValue())
	}
	merged := hdrhistogram.New(1, highest, 3)
	for _, h := range all {
		if dropped := merged.Merge(h); dropped > 0 {
			return Latency{}, false, fmt.Errorf("latencies of %s with %s: %d are out of their histogram's range", scenario, peer, dropped)
		}
	}
	ms := func(percentile float64) float64 { return float64(merged.ValueAtPercentile(percentile)) / 1000 }
	return Latency{
		Messages: merged.TotalCount(), P50: ms(50), P90: ms(90), P99: ms(99), P999: ms(99.9), Max: ms(100),
	}, merged.TotalCount() > 0, nil
}

func (r *Result) hasLatencies(scenario string) bool {
	for _, run := range r.Runs {
		if run.Scenario == scenario && run.Error == "" && run.Latencies != "" {
			return true
		}
	}
	return false
}
