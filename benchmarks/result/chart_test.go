package result

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	xfont "golang.org/x/image/font"
	"gonum.org/v1/plot/font"
)

func chartOf(t *testing.T, r *Result) string {
	t.Helper()
	var b bytes.Buffer
	require.NoError(t, r.Chart(&b))
	return b.String()
}

// textsOf returns the texts of an SVG, of which each must be within its width.
func textsOf(t *testing.T, svg string) []string {
	t.Helper()
	var texts []string
	d := xml.NewDecoder(strings.NewReader(svg))
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return texts
		}
		require.NoError(t, err)
		start, ok := token.(xml.StartElement)
		if !ok || start.Name.Local != "text" {
			continue
		}
		var text struct {
			X     float64 `xml:"x,attr"`
			Style string  `xml:"style,attr"`
			Text  string  `xml:",chardata"`
		}
		require.NoError(t, d.DecodeElement(&text, &start))
		_, rest, _ := strings.Cut(text.Style, "font-size:")
		size, _, _ := strings.Cut(rest, "px")
		points, err := strconv.ParseFloat(size, 64)
		require.NoError(t, err)
		weight := xfont.WeightNormal
		if strings.Contains(text.Style, "font-weight:bold") {
			weight = xfont.WeightBold
		}
		width := style(font.Length(points), weight, ink).Width(text.Text).Points()
		require.GreaterOrEqual(t, text.X, float64(margin)-1, text.Text)
		require.LessOrEqual(t, text.X+width, float64(chartWidth-margin)+1, text.Text)
		texts = append(texts, text.Text)
	}
}

func TestChart_ShowsEveryPeer(t *testing.T) {
	r := synthetic(t)
	svg := chartOf(t, r)
	texts := textsOf(t, svg)
	for _, peer := range r.peers("") {
		require.Contains(t, texts, title(peerTitles, peer))
	}
	for _, row := range r.drains() {
		for _, s := range []span{row.kafka, row.noop} {
			if s.median > 0 {
				require.Contains(t, texts, number(s.median))
			}
		}
	}
	require.Contains(t, texts, "median of 3 repetitions in turns, lowest and highest")
	require.Contains(t, svg, "#0969DA")
	require.NotContains(t, svg, "NaN")
	require.NotContains(t, svg, "font-family:Liberation Sans;")
}

func TestChart_IsTheSameOfTheSameResult(t *testing.T) {
	r := synthetic(t)
	first := chartOf(t, r)
	for range 3 {
		require.Equal(t, first, chartOf(t, r))
	}
	r.Started, r.Took = r.Started.AddDate(1, 0, 0), 1
	require.Equal(t, first, chartOf(t, r), "a date of its own has no place in it")
}

func TestChart_OfWhatThereIs(t *testing.T) {
	rate := func(scenario, peer string, v float64) Run {
		return Run{Scenario: scenario, Peer: peer, Repetition: 1, Metrics: map[string]float64{"rate_per_s": v}}
	}
	latency := func(peer string, micros ...int64) Run {
		return Run{Scenario: latencyAt500, Peer: peer, Repetition: 1, Latencies: histogramOf(t, newHistogram(), micros...)}
	}
	long := "a name that is longer than what anybody would call a peer, & <more>"
	for name, runs := range map[string][]Run{
		"one peer":                   {rate(drainToKafka, "outbox", 70_000), latency("outbox", 3000, 6000)},
		"rates only":                 {rate(drainToKafka, "outbox", 70_000), rate(drainToNoop, "river", 9000)},
		"latencies only":             {latency("outbox", 3000, 6000)},
		"latencies all alike":        {latency("outbox", 1000), latency("river", 1000)},
		"latencies of nothing":       {latency("outbox", 0)},
		"latencies far apart":        {latency("outbox", 1), latency("river", 59_000_000)},
		"rates of nothing":           {rate(drainToKafka, "outbox", 0), rate(drainToNoop, "outbox", 0)},
		"rates below one":            {rate(drainToKafka, "outbox", 0.25)},
		"rates of many digits":       {rate(drainToKafka, "outbox", 123_456_789)},
		"a long name":                {rate(drainToKafka, long, 70_000), latency(long, 3000, 6000)},
		"a long name in one of both": {rate(drainToKafka, long, 70_000), latency("outbox", 3000, 6000)},
	} {
		t.Run(name, func(t *testing.T) {
			texts := textsOf(t, chartOf(t, &Result{Runs: runs}))
			for _, run := range runs {
				require.Contains(t, texts, run.Peer)
			}
		})
	}
}

func TestChart_SaysWhatItCannotShow(t *testing.T) {
	err := (&Result{}).Chart(io.Discard)
	require.ErrorContains(t, err, "drain-kafka or drain-noop")
	err = (&Result{Runs: []Run{{Scenario: latencyAt500, Peer: "outbox", Latencies: "?"}}}).Chart(io.Discard)
	require.ErrorContains(t, err, "latencies of repetition 0 of latency-500 with outbox")
	err = synthetic(t).Chart(brokenWriter{})
	require.ErrorIs(t, err, io.ErrClosedPipe)
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestTicks_AreRound(t *testing.T) {
	for _, c := range []struct{ v, down, up float64 }{
		{1, 1, 1}, {1.5, 1, 2}, {3, 2, 5}, {7, 5, 10}, {1000, 1000, 1000}, {999, 500, 1000}, {0.3, 0.2, 0.5}, {70_000, 50_000, 100_000},
	} {
		require.InEpsilon(t, c.down, roundDown(c.v), 1e-9, "%v", c.v)
		require.InEpsilon(t, c.up, roundUp(c.v), 1e-9, "%v", c.v)
	}
	for _, high := range []float64{1, 7, 68.5, 999, 307_000} {
		n := len(evenTicks(0, high))
		require.GreaterOrEqual(t, n, 3)
		require.LessOrEqual(t, n, 7) // with zero
	}
	for _, c := range [][2]float64{{1, 2}, {1, 10}, {1, 1000}, {0.001, 100_000}} {
		n := len(logTicks(c[0], c[1]))
		require.GreaterOrEqual(t, n, 2)
		require.LessOrEqual(t, n, 10)
	}
}
