package scan_test

import (
	"slices"
	"strings"
	"testing"
)

// kind is what a step sees and does, as far as that matters to the steps of others.
type kind string

// commute are kinds of steps that come to the same in either order, since neither sees what the other does.
var commute = map[[2]kind]bool{
	{"publish", "begin"}: true, {"publish", "end"}: true, {"publish", "tell"}: true,
	{"commit", "last"}: true, {"commit", "end"}: true, {"commit", "tell"}: true,
	{"commit", "commit"}: true, {"commit", "roll back"}: true, {"roll back", "roll back"}: true,
	{"roll back", "begin"}: true, {"roll back", "last"}: true, {"roll back", "end"}: true, {"roll back", "tell"}: true,
	{"tell", "list"}: true, {"tell", "last"}: true,
	{"nothing", "publish"}: true, {"nothing", "commit"}: true, {"nothing", "roll back"}: true, {"nothing", "nothing"}: true,
	{"nothing", "begin"}: true, {"nothing", "list"}: true, {"nothing", "last"}: true, {"nothing", "end"}: true,
}

func (w *world) kind(step string) kind {
	name, op, _ := parse(step)
	t := w.txs[name]
	switch {
	case op == "r":
		return [...]kind{begin: "begin", look: "list", lookOn: "last", end: "end"}[w.relays[0].step]
	case op == "lose", op == "loseall", op == "refuse":
		return "tell"
	case name == "":
		return "server"
	case t != nil && t.ended: // by a crash
		return "nothing"
	case op == "+":
		return "commit"
	case op == "-":
		return "roll back"
	}
	return "publish"
}

// interleavings plays the steps of some programs in every order, but only in one of those orders that differ by steps that
// commute.
type interleavings struct {
	programs [][]string
	start    func() *world
	check    func(w *world, history []string)

	history []string
	by      []int // whose each step is
	kinds   []kind
}

// extend plays what may follow upon the history, which w is at the end of.
func (i *interleavings) extend(w *world) {
	next := make([]kind, len(i.programs)) // before w is at another end
	for n, p := range i.programs {
		if len(p) > 0 {
			next[n] = w.kind(p[0])
		}
	}
	played := false
	for n, p := range i.programs {
		if len(p) == 0 {
			continue
		}
		if played = true; i.comesEarlier(n, next[n]) {
			continue
		}
		if w == nil {
			w = i.replay()
		}
		if next[n] == "nothing" || w.do(p[0]) {
			i.history, i.by, i.kinds = append(i.history, p[0]), append(i.by, n), append(i.kinds, next[n])
			i.programs[n] = p[1:]
			i.extend(w)
			i.programs[n] = p
			last := len(i.history) - 1
			i.history, i.by, i.kinds = i.history[:last], i.by[:last], i.kinds[:last]
		}
		w = nil
	}
	if !played {
		i.check(w, i.history)
	}
}

// comesEarlier tells whether n's next step comes to the same before one that an earlier program has just made.
func (i *interleavings) comesEarlier(n int, k kind) bool {
	for at := len(i.history) - 1; at >= 0 && i.by[at] != n; at-- {
		if before := i.kinds[at]; !commute[[2]kind{k, before}] && !commute[[2]kind{before, k}] {
			return false
		}
		if n < i.by[at] {
			return true
		}
	}
	return false
}

func (i *interleavings) replay() *world {
	w := i.start()
	for at, step := range i.history {
		if i.kinds[at] != "nothing" {
			w.do(step)
		}
	}
	return w
}

// Whatever happens once, at any point: the broker refuses a message, leases are lost and taken again, the server crashes, or
// a replica takes over that lacks what came after the first id.
func TestReader_LosesAndReordersNothing_InAnyInterleavingOfThreeTransactionsOnTwoKeys(t *testing.T) {
	for transactions, events := range map[string][]string{
		"1a 1+ 2a 2- 3a 3+":    {"", "refuse", "lose0", "loseall", "crash", "failover1"},
		"1a 1- 2b 2+ 3b 3+":    {"", "refuse", "lose0", "loseall", "failover1"},
		"1a 1+ 2a 2+ 3b 3+":    {"", "lose0", "loseall"},
		"1a 1+ 2a 2b 2+ 3b 3+": {""},
		"1a 1p 1+ 2b 2+ 3a 3+": {"", "crash"},
	} {
		if testing.Short() && transactions != "1a 1+ 2a 2- 3a 3+" {
			continue
		}
		for _, event := range events {
			all := &interleavings{programs: make([][]string, 3)}
			for step := range strings.FieldsSeq(transactions) {
				name := step[0] - '1'
				all.programs[name] = append(all.programs[name], step)
			}
			steps := 12 // of three fetches that look in two steps
			if event != "" {
				all.programs = append(all.programs, []string{event})
				steps = 6 // of two
			}
			all.programs = append(all.programs, slices.Repeat([]string{"r"}, steps))
			all.start = func() *world {
				w := newWorld()
				r := w.relays[0]
				r.greedy, r.listFirst, r.looksAtOnce, r.limit, r.budget = true, true, event != "", 2, 3
				return w
			}
			t.Run(strings.TrimSpace(transactions+" "+event), func(t *testing.T) {
				histories := 0
				all.check = func(w *world, history []string) {
					if err := w.finish(); err != nil {
						t.Fatalf("%v, after: %s", err, strings.Join(history, " "))
					}
					histories++
				}
				all.extend(all.start())
				t.Log(histories, "histories")
			})
		}
	}
}
