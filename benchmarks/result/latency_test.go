package result

import (
	"math"
	"testing"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/stretchr/testify/require"
)

// histogramOf encodes latencies in microseconds.
func histogramOf(t *testing.T, h *hdrhistogram.Histogram, micros ...int64) string {
	t.Helper()
	for _, v := range micros {
		require.NoError(t, h.RecordValue(v))
	}
	b, err := h.Encode(hdrhistogram.V2CompressedEncodingCookieBase)
	require.NoError(t, err)
	return string(b)
}

func newHistogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(1, time.Minute.Microseconds(), 3)
}

func TestLatency_IsOfTheMessagesOfAllRepetitions(t *testing.T) {
	fast := make([]int64, 990)
	for i := range fast {
		fast[i] = 2000
	}
	r := &Result{Runs: []Run{
		{Scenario: "latency-500", Peer: "outbox", Repetition: 1, Latencies: histogramOf(t, newHistogram(), fast...)},
		{Scenario: "latency-500", Peer: "outbox", Repetition: 2, Error: "broke", Latencies: histogramOf(t, newHistogram(), 9, 9)},
		// Of another range and precision, and ten times as slow.
		{Scenario: "latency-500", Peer: "outbox", Repetition: 3, Latencies: histogramOf(t,
			hdrhistogram.New(1, time.Hour.Microseconds(), 2), 20_000, 20_000, 20_000, 20_000, 20_000, 20_000, 20_000, 20_000, 20_000,
			30*time.Minute.Microseconds())},
		{Scenario: "latency-500", Peer: "Debezium", Repetition: 1, Latencies: histogramOf(t, newHistogram(), 5)},
		{Scenario: "silence", Peer: "outbox", Repetition: 1, Latencies: histogramOf(t, newHistogram(), 5)},
	}}
	l, ok, err := r.Latency("latency-500", "outbox")
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, int64(1000), l.Messages)
	require.InEpsilon(t, 2, l.P50, 0.001)
	require.InEpsilon(t, 2, l.P99, 0.001)
	require.InEpsilon(t, 20, l.P999, 0.01)
	require.InEpsilon(t, 30*60*1000, l.Max, 0.01)

	l, _, err = r.Latency("latency-500", "Debezium")
	require.NoError(t, err)
	require.Equal(t, Latency{Messages: 1, P50: 0.005, P90: 0.005, P99: 0.005, P999: 0.005, Max: 0.005}, l)
}

func TestLatency_IsNone_WhereNothingWasRecorded(t *testing.T) {
	r := &Result{Runs: []Run{
		{Scenario: "latency-500", Peer: "outbox", Repetition: 1, Latencies: histogramOf(t, newHistogram())},
		{Scenario: "latency-500", Peer: "river", Repetition: 1},
	}}
	for _, peer := range []string{"outbox", "river", "nobody"} {
		l, ok, err := r.Latency("latency-500", peer)
		require.NoError(t, err)
		require.False(t, ok)
		require.Zero(t, l)
	}
}

func TestLatency_SaysWhichRunHasAHistogramThatCannotBeRead(t *testing.T) {
	whole := histogramOf(t, newHistogram(), 1, 1000, 1_000_000)
	for _, encoded := range []string{"no histogram", "AAAA", whole[:len(whole)/2], whole[1:]} {
		r := &Result{Runs: []Run{{Scenario: "latency-500", Peer: "outbox", Repetition: 2, Latencies: encoded}}}
		_, ok, err := r.Latency("latency-500", "outbox")
		require.ErrorContains(t, err, "latencies of repetition 2 of latency-500 with outbox: ")
		require.False(t, ok)
		require.Contains(t, r.Markdown(), "outbox: latencies of repetition 2 of latency-500")
	}
}

// The smallest and the largest histograms that there can be.
func TestLatency_HasRoomForAnyHistogram(t *testing.T) {
	r := &Result{Runs: []Run{
		{Peer: "small", Latencies: histogramOf(t, hdrhistogram.New(1, 2, 0), 1, 2)},
		{Peer: "large", Latencies: histogramOf(t, hdrhistogram.New(1, math.MaxInt64, 1), 1, math.MaxInt64/2)},
		{Peer: "coarse", Latencies: histogramOf(t, hdrhistogram.New(1000, time.Minute.Microseconds(), 1), 5000)},
	}}
	for _, peer := range []string{"small", "large", "coarse"} {
		l, ok, err := r.Latency("", peer)
		require.NoError(t, err)
		require.True(t, ok)
		require.Positive(t, l.P50)
		require.GreaterOrEqual(t, l.Max, l.P50)
	}
}
