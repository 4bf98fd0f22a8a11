package result

import (
	"math"
	"strconv"
	"strings"
)

// significant is how many digits of a figure stand in a table: no more than repetitions agree on.
const significant = 3

// none stands where there is no figure.
const none = "–"

// number writes a figure for people: three digits that count, thousands apart, no exponent. What is whole has no digits
// behind a point.
func number(v float64) string { return figure(v, isWhole(v)) }

func isWhole(v float64) bool { return v == math.Trunc(v) }

func figure(v float64, whole bool) string {
	if !finite(v) {
		return none
	}
	rounded, exponent := round(v)
	decimals := max(significant-1-exponent, 0)
	if whole {
		decimals = 0
	}
	return thousands(strconv.FormatFloat(rounded, 'f', decimals, 64))
}

// round returns a finite number with the digits that count, and the power of ten that the first of them stands for.
func round(v float64) (rounded float64, exponent int) {
	s := strconv.FormatFloat(v, 'e', significant-1, 64)
	_, e, _ := strings.Cut(s, "e")
	rounded, _ = strconv.ParseFloat(s, 64) // FormatFloat has just written it
	exponent, _ = strconv.Atoi(e)
	return rounded, exponent
}

// shortest writes a round number, such as one at a tick of an axis, with no more digits than it has.
func shortest(v float64) string {
	rounded, _ := round(v)
	return thousands(strconv.FormatFloat(rounded, 'f', -1, 64))
}

// count writes a count, with all of its digits.
func count(n int64) string { return thousands(strconv.FormatInt(n, 10)) }

// thousands sets commas between the thousands of a decimal number.
func thousands(s string) string {
	end := strings.IndexByte(s, '.')
	if end < 0 {
		end = len(s)
	}
	begin := 0
	if strings.HasPrefix(s, "-") {
		begin = 1
	}
	for at := end - 3; at > begin; at -= 3 {
		s = s[:at] + "," + s[at:]
	}
	return s
}

// spread writes the median of figures and, where they differ in what is shown of them, their range. The unit stands
// after the median.
func spread(values []float64, unit string) string {
	if len(values) == 0 {
		return none
	}
	median, low, high := Median(values)
	return withRange(median, low, high, unit)
}

func withRange(median, low, high float64, unit string) string {
	whole := isWhole(median) && isWhole(low) && isWhole(high)
	s, from, to := figure(median, whole)+unit, figure(low, whole), figure(high, whole)
	if from == to {
		return s
	}
	return s + " (" + from + " to " + to + ")"
}

// unit is how a metric whose name ends with suffix is written: behind its title, and behind a figure.
type unit struct {
	suffix string
	title  string
	figure string
}

// unitsBySuffix has longer endings before those that end like them.
var unitsBySuffix = []unit{
	{"_s_per_million", " (s per million messages)", " s"},
	{"_per_s", "/s", "/s"},
	{"_ms", " (ms)", " ms"},
	{"_mb", " (MB)", " MB"},
	{"_bytes", " (bytes)", " bytes"},
}

func unitOf(metric string) unit {
	for _, u := range unitsBySuffix {
		if strings.HasSuffix(metric, u.suffix) {
			return u
		}
	}
	return unit{}
}
