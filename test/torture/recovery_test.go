package torture_test

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/watermill-outbox/outbox/test/history"
)

// recovery is how long a message had to wait, from a fault on, until something was published again: anything, or something of
// each slot that the victim had, by somebody else.
type recovery struct {
	fault

	took time.Duration
	// disturbed is one that ended after the next fault had begun, which may be why it took as long.
	disturbed bool
}

// bound of recovering.
type bound struct {
	kind    string
	longest time.Duration
}

// bounds are those that are promised. Others are told without one.
var bounds = []bound{
	{"SIGKILL of a relay", ttl + time.Second},
	{"SIGSTOP of a relay past its lease", ttl + time.Second},
	{"an instance comes and goes", ttl + time.Second},
	{"SIGTERM of a relay", 500 * time.Millisecond},
	{"PostgreSQL restarted, fast", 2 * time.Second},
	{"PostgreSQL restarted, immediate", 2 * time.Second},
	{"PgBouncer restarted", 2 * time.Second},
	{"the database's disk full", 2 * time.Second},
	{"Kafka stopped and started", 2 * time.Second},
	{"Kafka killed and started", 2 * time.Second},
	// Another history is taken for one in which leases may have gone back, and nobody takes any for as long as they last.
	{"a standby promoted", ttl + 2*time.Second},
}

// takenOver are the kinds after which others have to go on with the victim's slots.
var takenOver = []string{
	"SIGKILL of a relay", "SIGSTOP of a relay past its lease", "an instance comes and goes", "SIGTERM of a relay",
}

// ack is a message that has got to Kafka.
type ack struct {
	at        int64
	process   string
	committed int64 // when that was told, or zero
}

// recoveries finds out how long each fault took.
func recoveries(h *history.History, faults []fault) []recovery {
	slices.SortStableFunc(h.Events, func(a, b history.Event) int { return cmp.Compare(a.At, b.At) })
	all, bySlot := acks(h)
	results := make([]recovery, 0, len(faults))
	for i, f := range faults {
		var took int64
		if slices.Contains(takenOver, f.kind) {
			for slot := range held(h, f.victim, f.begun) {
				took = max(took, untilNext(bySlot[slot], f.ready, f.victim))
			}
		} else {
			took = untilNext(all, f.ready, "")
		}
		results = append(results, recovery{f, time.Duration(took), i+1 < len(faults) && f.ready+took > faults[i+1].begun})
	}
	return results
}

// acks returns those of all messages, and those of each slot.
func acks(h *history.History) (all []ack, bySlot map[int][]ack) {
	commits, transactions := map[string]int64{}, map[string]string{}
	for _, e := range h.Events {
		switch e.Kind {
		case history.Publishing:
			for _, m := range e.Messages {
				transactions[m.ID] = e.Tx
			}
		case history.Committed:
			commits[e.Tx] = e.At
		case history.RolledBack, history.Attempt, history.Acked, history.Gained, history.Dropped:
		}
	}
	bySlot = map[int][]ack{}
	for _, e := range h.Events {
		if e.Kind != history.Acked {
			continue
		}
		for _, m := range e.Messages {
			a := ack{e.At, e.Process, commits[transactions[m.ID]]}
			all = append(all, a)
			if slot, keyed := h.Slots[m.Key]; keyed {
				bySlot[slot] = append(bySlot[slot], a)
			}
		}
	}
	return all, bySlot
}

// held returns the slots that a process had at a time.
func held(h *history.History, process string, at int64) map[int]struct{} {
	slots := map[int]struct{}{}
	for _, e := range h.Events {
		if e.At > at {
			break
		}
		if e.Process != process {
			continue
		}
		switch e.Kind {
		case history.Gained:
			for _, slot := range e.Slots {
				slots[slot] = struct{}{}
			}
		case history.Dropped:
			for _, slot := range e.Slots {
				delete(slots, slot)
			}
		case history.Publishing, history.Committed, history.RolledBack, history.Attempt, history.Acked:
		}
	}
	return slots
}

// untilNext returns how long, after a time, the next message had to wait that another process than one has published: since
// then, or since it was committed.
func untilNext(acks []ack, after int64, but string) int64 {
	from, _ := slices.BinarySearchFunc(acks, after, func(a ack, at int64) int { return cmp.Compare(a.at, at) })
	for _, a := range acks[from:] {
		if a.process != but && a.committed != 0 {
			return max(a.at-max(after, a.committed), 0)
		}
	}
	return 0 // there was none
}

// table shows the recoveries by kind.
func table(all []recovery) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-36s %6s %9s %9s %9s %6s %10s\n", "fault", "times", "median", "longest", "at most", "above", "disturbed")
	for _, kind := range slices.Compact(slices.Sorted(func(yield func(string) bool) {
		for _, r := range all {
			if !yield(r.kind) {
				return
			}
		}
	})) {
		var took []time.Duration
		disturbed := 0
		for _, r := range all {
			switch {
			case r.kind != kind:
			case r.disturbed:
				disturbed++
			default:
				took = append(took, r.took)
			}
		}
		if len(took)+disturbed == 0 {
			continue
		}
		slices.Sort(took)
		median, longest, limit, above := "", "", "", ""
		if len(took) > 0 {
			median, longest = inMillis(took[len(took)/2]), inMillis(took[len(took)-1])
		}
		if i := slices.IndexFunc(bounds, func(of bound) bool { return of.kind == kind }); i >= 0 {
			limit = inMillis(bounds[i].longest)
			within, _ := slices.BinarySearch(took, bounds[i].longest+1)
			above = fmt.Sprint(len(took) - within)
		}
		fmt.Fprintf(&b, "%-36s %6d %9s %9s %9s %6s %10d\n", kind, len(took)+disturbed, median, longest, limit, above, disturbed)
	}
	return b.String()
}

func inMillis(d time.Duration) string { return fmt.Sprintf("%d ms", d.Milliseconds()) }
