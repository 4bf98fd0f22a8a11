package result

import (
	"bytes"
	"cmp"
	"errors"
	"io"
	"slices"

	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// What the chart shows.
const (
	drainToKafka = "drain-kafka"
	drainToNoop  = "drain-noop"
	latencyAt500 = "latency-500"
)

// span is a figure with its range.
type span struct{ median, low, high float64 }

func spanOf(values []float64) (span, bool) {
	if len(values) == 0 {
		return span{}, false
	}
	var s span
	s.median, s.low, s.high = Median(values)
	return s, true
}

// drainRow is a peer's rates; a median of zero says that it has none.
type drainRow struct {
	peer  string
	ours  bool
	kafka span
	noop  span
}

// drains are ordered by what counts, the rate to a broker.
func (r *Result) drains() []drainRow {
	var rows []drainRow
	for _, peer := range r.peers("") {
		kafka, toKafka := spanOf(r.Values(drainToKafka, peer, "rate_per_s"))
		noop, toNoop := spanOf(r.Values(drainToNoop, peer, "rate_per_s"))
		if toKafka || toNoop {
			rows = append(rows, drainRow{peer: peer, ours: r.isOurs(peer), kafka: kafka, noop: noop})
		}
	}
	slices.SortStableFunc(rows, func(x, y drainRow) int {
		return cmp.Or(cmp.Compare(y.kafka.median, x.kafka.median), cmp.Compare(y.noop.median, x.noop.median))
	})
	return rows
}

// latencyRow is a peer's latencies in milliseconds.
type latencyRow struct {
	peer string
	ours bool
	p50  float64
	p99  float64
}

// latencies are ordered by the median.
func (r *Result) latencies() ([]latencyRow, error) {
	var rows []latencyRow
	for _, peer := range r.peers(latencyAt500) {
		l, ok, err := r.Latency(latencyAt500, peer)
		if err != nil {
			return nil, err
		}
		if ok {
			// A logarithmic axis has no zero; a microsecond is what the histograms can tell apart.
			rows = append(rows, latencyRow{peer: peer, ours: r.isOurs(peer), p50: max(l.P50, 0.001), p99: max(l.P99, 0.001)})
		}
	}
	slices.SortStableFunc(rows, func(x, y latencyRow) int { return cmp.Or(cmp.Compare(x.p50, y.p50), cmp.Compare(x.p99, y.p99)) })
	return rows, nil
}

// Lengths are in points, of which an inch has 72 where CSS has 96 pixels to it: the chart is 800 pixels wide.
const (
	chartWidth = 600
	margin     = 15
	panelGap   = 18
)

// Chart writes an SVG of two panels: how fast each peer drains a backlog, to Kafka and to a publisher that does nothing,
// and how long a message takes at 500 a second. A panel without figures is left out; without either there is an error.
// The same result gives the same bytes. The background is white, so that it can stand on a page of any colour.
func (r *Result) Chart(w io.Writer) error {
	latencies, err := r.latencies()
	if err != nil {
		return err
	}
	var panels []*panel
	if rows := r.drains(); len(rows) > 0 {
		panels = append(panels, drainPanel(rows, r.repetitions(drainToKafka, drainToNoop)))
	}
	if len(latencies) > 0 {
		panels = append(panels, latencyPanel(latencies))
	}
	if len(panels) == 0 {
		return errors.New("a chart needs rates of " + drainToKafka + " or " + drainToNoop + ", or latencies of " +
			latencyAt500 + "; the result has none of them")
	}
	height := vg.Length(2*margin - panelGap)
	names := vg.Length(0)
	for _, p := range panels {
		height += p.height() + panelGap
		names = max(names, p.namesWidth())
	}
	svg := vgsvg.NewWith(vgsvg.UseWH(chartWidth, height))
	page := draw.New(svg)
	page.SetColor(white)
	page.Fill(page.Path())
	top := vg.Length(margin)
	for _, p := range panels {
		p.draw(draw.Crop(page, margin, -margin, height-top-p.height(), -top), names)
		top += p.height() + panelGap
	}
	var b bytes.Buffer
	if _, err := svg.WriteTo(&b); err != nil {
		return err
	}
	_, err = w.Write(withCommonFonts(b.Bytes()))
	return err
}

// withCommonFonts names fonts that take as much room as the one that the chart was laid out with, for the many that do not
// have it.
func withCommonFonts(svg []byte) []byte {
	return bytes.ReplaceAll(svg, []byte("font-family:Liberation Sans;"),
		[]byte("font-family:Liberation Sans,Arial,Helvetica,sans-serif;"))
}
