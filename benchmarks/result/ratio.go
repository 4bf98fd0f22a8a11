package result

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"unicode"
)

// Goal is what the median of a ratio must come to. A field that is zero asks for nothing, and a Goal of nothing but
// zeros is none.
type Goal struct {
	AtLeast float64
	AtMost  float64
	Below   float64
}

// String returns the goal as it stands in a Ratio, such as ">= 1.8"; where there is none, it is empty.
func (g Goal) String() string {
	var parts []string
	for _, p := range []struct {
		operator string
		bound    float64
	}{{">=", g.AtLeast}, {"<=", g.AtMost}, {"<", g.Below}} {
		if p.bound != 0 {
			parts = append(parts, fmt.Sprintf("%s %v", p.operator, p.bound))
		}
	}
	return strings.Join(parts, ", ")
}

// Met says whether there is a goal and a ratio reaches it.
func (g Goal) Met(ratio float64) bool {
	return g != Goal{} &&
		(g.AtLeast == 0 || ratio >= g.AtLeast) && (g.AtMost == 0 || ratio <= g.AtMost) && (g.Below == 0 || ratio < g.Below)
}

// leastRepetitions is how many a goal is met by, at the least.
const leastRepetitions = 3

// WithGoal returns the ratio with a goal, and with whether its median meets it.
func (r Ratio) WithGoal(g Goal) Ratio {
	r.Goal, r.Met = g.String(), g.Met(r.Value) && r.Repetitions >= leastRepetitions
	return r
}

// NewRatio returns one without a value.
func NewRatio(scenario, metric, ours, theirs string) Ratio {
	return Ratio{
		Name:     scenario + "." + slug(theirs) + "." + metric,
		Scenario: scenario, Metric: metric, Ours: ours, Theirs: theirs,
	}
}

// Compare divides a metric of our peer by theirs, repetition by repetition, since two figures of one repetition were
// measured one soon after the other on a machine in the same mood. Repetitions in which one of the
// two failed do not count. There is no ratio, and Compare returns false, where there is no common repetition, or where one
// of them divides by zero or is more than a float64 can hold: to leave that one out would flatter one side or the other.
func Compare(runs []Run, scenario, metric, ours, theirs string) (Ratio, bool) {
	divisors := byRepetition(runs, scenario, theirs, metric)
	dividends := byRepetition(runs, scenario, ours, metric)
	var ratios []float64
	for _, n := range slices.Sorted(maps.Keys(dividends)) {
		divisor, ok := divisors[n]
		if !ok {
			continue
		}
		ratio := dividends[n] / divisor
		if divisor == 0 || !finite(ratio) {
			return Ratio{}, false
		}
		ratios = append(ratios, ratio)
	}
	if len(ratios) == 0 {
		return Ratio{}, false
	}
	r := NewRatio(scenario, metric, ours, theirs)
	r.Value, r.Low, r.High = Median(ratios)
	r.Repetitions = len(ratios)
	return r, true
}

func byRepetition(runs []Run, scenario, peer, metric string) map[int]float64 {
	values := make(map[int]float64)
	for _, run := range runs {
		if v, ok := run.value(metric); ok && run.Scenario == scenario && run.Peer == peer {
			values[run.Repetition] = v
		}
	}
	return values
}

func finite(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }

// slug is a peer's name for programs: its letters and digits in lower case, and a dash for whatever is between them.
func slug(name string) string {
	words := strings.FieldsFunc(strings.ToLower(name), func(c rune) bool { return !unicode.IsLetter(c) && !unicode.IsDigit(c) })
	return strings.Join(words, "-")
}
