package crash_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// outcome is what there is when all has been done.
type outcome struct {
	run       string
	committed []string // messages to be published
	published []string // in order, as often as they were
	inFlight  []string // published, and not marked yet, at the crash
	left      []string // in the outbox
	setAside  []string
	keeps     bool     // what was published is to be in the archive
	kept      []string // and this is
	lost      int      // leases, since the machine was too slow: what is in flight then may be published again, too
}

// check returns an error for each promise that was broken.
func (o *outcome) check() error {
	times, last := map[string]int{}, map[string]string{}
	var errs []error
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for _, id := range o.published {
		name := strings.TrimPrefix(id, o.run)
		switch times[id]++; {
		case !slices.Contains(o.committed, id):
			wrong("%s is published, and was not committed", id)
		case name == refused:
			wrong("%s is published, and was refused", id)
		case times[id] > 1 || keyOf(name) == "-":
		case name < last[keyOf(name)]:
			wrong("%s is published behind %s", id, o.run+last[keyOf(name)])
		default:
			last[keyOf(name)] = name
		}
	}
	for _, id := range o.committed {
		if aside := times[id] == 0; aside != slices.Contains(o.setAside, id) || aside != (id == o.run+refused) {
			wrong("%s was published %d times, and %v are set aside", id, times[id], o.setAside)
		}
	}
	if again := o.again(); o.lost == 0 && (len(again) > maxInFlight || !contains(o.inFlight, again)) {
		wrong("%v are published again, and only %v were in flight", again, o.inFlight)
	}
	for id, n := range times {
		if n > 2+o.lost {
			wrong("%s is published %d times", id, n)
		}
	}
	if len(o.left) > 0 {
		wrong("%v are left", o.left)
	}
	for _, id := range append(slices.Clone(o.committed), o.kept...) {
		n, want := 0, 0
		for _, other := range o.kept {
			if other == id {
				n++
			}
		}
		if o.keeps && times[id] > 0 {
			want = 1
		}
		if n != want {
			wrong("%s is kept %d times, and not %d", id, n, want)
		}
	}
	if !contains(o.committed, o.setAside) || len(o.setAside) > 1 {
		wrong("%v are set aside", o.setAside)
	}
	return errors.Join(errs...)
}

// again returns what was published more than once.
func (o *outcome) again() (again []string) {
	for i, id := range o.published {
		if slices.Index(o.published, id) < i && !slices.Contains(again, id) {
			again = append(again, id)
		}
	}
	return again
}

func contains(all, some []string) bool {
	return !slices.ContainsFunc(some, func(one string) bool { return !slices.Contains(all, one) })
}

// checkEffects checks that each of the inputs has had one effect. An effect is the input's id and the message's.
func checkEffects(run string, effects, recorded []string) error {
	var want []string
	for _, name := range inputs {
		want = append(want, inputPrefix+run+name+" "+run+name)
	}
	slices.Sort(want)
	slices.Sort(effects)
	if !slices.Equal(effects, want) {
		return fmt.Errorf("the effects are %v, and not %v", effects, want)
	}
	if len(recorded) != len(inputs) {
		return fmt.Errorf("recorded as handled are %v", recorded)
	}
	return nil
}

func TestOutcome_TellsEachBrokenPromise(t *testing.T) {
	good := func() outcome {
		return outcome{
			run: "7-", committed: []string{"7-a1", "7-a2", "7-b1", "7--1", "7--2"},
			published: []string{"7-a1", "7--1", "7-a1", "7-b1", "7-a2"}, inFlight: []string{"7-a1"}, setAside: []string{"7--2"},
		}
	}
	o := good()
	require.NoError(t, o.check())
	for broken, change := range map[string]func(*outcome){
		"7-a2 was published 0 times":                 func(o *outcome) { o.published = o.published[:4] },
		"7-b2 is published, and was not committed":   func(o *outcome) { o.published = append(o.published, "7-b2") },
		"7--2 is published, and was refused":         func(o *outcome) { o.published = append(o.published, "7--2") },
		"7-a1 is published behind 7-a2":              func(o *outcome) { slices.Reverse(o.published) },
		"[7-a1] are published again, and only []":    func(o *outcome) { o.inFlight = nil },
		"7-a1 is published 3 times":                  func(o *outcome) { o.published = append(o.published, "7-a1") },
		"[7-b1] are left":                            func(o *outcome) { o.left = []string{"7-b1"} },
		"[7--2 7--2] are set aside":                  func(o *outcome) { o.setAside = append(o.setAside, "7--2") },
		"7--2 was published 0 times, and [] are set": func(o *outcome) { o.setAside = nil },
		"7-b1 was published 1 times, and [7-b1] are": func(o *outcome) { o.setAside = []string{"7-b1"} },
		"[7--2 7-c9] are set aside":                  func(o *outcome) { o.setAside = append(o.setAside, "7-c9") },
	} {
		o = good()
		change(&o)
		require.ErrorContains(t, o.check(), broken)
	}
	o = good()
	o.keeps, o.kept = true, []string{"7-a1", "7-a2", "7-b1", "7--1"}
	require.NoError(t, o.check())
	o.kept = o.kept[1:]
	require.ErrorContains(t, o.check(), "7-a1 is kept 0 times, and not 1")
	o.kept = append(o.kept, "7-a1", "7--2")
	require.ErrorContains(t, o.check(), "7--2 is kept 1 times, and not 0")
	o = good()
	o.kept = []string{"7-a1"}
	require.ErrorContains(t, o.check(), "7-a1 is kept 1 times, and not 0")
}

func TestCheckEffects_TellsLostAndRepeatedEffects(t *testing.T) {
	effects := func() (all []string) {
		for _, name := range inputs {
			all = append(all, inputPrefix+"7-"+name+" 7-"+name)
		}
		return all
	}
	require.NoError(t, checkEffects("7-", effects(), inputs))
	require.Error(t, checkEffects("7-", effects()[1:], inputs))
	require.Error(t, checkEffects("7-", append(effects(), effects()[0]), inputs))
	require.Error(t, checkEffects("7-", effects(), inputs[1:]))
}
