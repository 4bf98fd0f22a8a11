package main

import (
	"errors"
	"fmt"
	"slices"

	"github.com/watermill-outbox/outbox/benchmarks/result"
)

// growth is how a figure went over a run.
type growth struct {
	limit

	first, middle, last float64 // medians of the thirds
	end                 float64 // the median of the last few windows
	trend               float64 // what a size grows by in all
}

// grown takes the windows of a run, which are at least three.
func grown(values []float64, l limit) growth {
	const few = 5 // of which the median takes three
	end := values[len(values)-min(few, len(values)/3):]
	if l.size {
		values = envelope(values)
	}
	thirds := parts(values, 3)
	g := growth{limit: l, first: median(thirds[0]), middle: median(thirds[1]), last: median(thirds[2]), end: median(end)}
	if l.size {
		g.trend = trend(values)
	}
	return g
}

func (g growth) err() error {
	most := g.most(g.first)
	var errs []error
	if v := max(g.middle, g.last); v > most {
		errs = append(errs, fmt.Errorf("%s has grown from %.2f to %.2f, and may be %.2f", g.metric, g.first, v, most))
	}
	if more := most - g.first; g.trend > more {
		errs = append(errs, fmt.Errorf("%s grows by %.2f over the run, from %.2f, and may by %.2f", g.metric, g.trend, g.first, more))
	}
	if atEnd := g.first + 3*(most-g.first); g.end > atEnd {
		errs = append(errs, fmt.Errorf("%s ended at %.2f, from %.2f, and may at %.2f", g.metric, g.end, g.first, atEnd))
	}
	return errors.Join(errs...)
}

func (g growth) String() string {
	return fmt.Sprintf("%-28s %10.2f, then %10.2f and %10.2f, at most %10.2f; %10.2f at the end", g.metric, g.first, g.middle, g.last, g.most(g.first), g.end)
}

// envelope has for each window the most of a tenth of the run, or of three windows, until then. It is flat where a size is a
// saw-tooth: it rises until a vacuum, a collection or a checkpoint, and falls.
func envelope(values []float64) []float64 {
	width := max(len(values)/10, 3)
	most := make([]float64, len(values))
	for i := range values {
		most[i] = slices.Max(values[max(0, i+1-width) : i+1])
	}
	return most
}

// trend is what values grow by from the first to the last: by the median of the slopes between all pairs of the medians of
// tenths (Theil-Sen), which some that are out of line do not move.
func trend(values []float64) float64 {
	tenths := parts(values, min(10, len(values)))
	var slopes []float64
	for i := range tenths {
		for j := range i {
			slopes = append(slopes, (median(tenths[i])-median(tenths[j]))/float64(i-j))
		}
	}
	return median(slopes) * float64(len(tenths))
}

// parts divides values, which are at least n, evenly and in order.
func parts(values []float64, n int) [][]float64 {
	all := make([][]float64, n)
	for i := range all {
		all[i] = values[i*len(values)/n : (i+1)*len(values)/n]
	}
	return all
}

func median(values []float64) float64 {
	m, _, _ := result.Median(values)
	return m
}

func mean(values []float64) float64 {
	sum := 0.0
	for _, v := range values {
		sum += v
	}
	return sum / float64(len(values))
}
