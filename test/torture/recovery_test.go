//go:build linux

package torture_test

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/watermill-outbox/outbox/test/history"
)

// bounds are how long recovering from a fault may take. Those of other kinds are told without one.
var bounds = map[string]time.Duration{
	"SIGKILL of a relay":                ttl + time.Second,
	"SIGSTOP of a relay past its lease": ttl + time.Second,
	"an instance comes and goes":        ttl + time.Second,
	"SIGTERM of a relay":                500 * time.Millisecond,
	"PostgreSQL restarted, fast":        2 * time.Second,
	"PostgreSQL restarted, immediate":   2 * time.Second,
	"PgBouncer restarted":               2 * time.Second,
	"the database's disk full":          2 * time.Second,
	"Kafka stopped and started":         2 * time.Second,
	"Kafka killed and started":          2 * time.Second,
	// Another history is taken for one in which leases may have gone back, and nobody takes any for as long as they last.
	"a standby promoted": ttl + 2*time.Second,

	// Of the application on SQLite.
	"SIGKILL": ttl + time.Second,
	"SIGTERM": 500 * time.Millisecond,
	"SIGSTOP past the lease, beside a second process": ttl + time.Second,
	"SIGKILL, beside a second process":                ttl + time.Second,
	"a second process comes and is killed":            ttl + time.Second,
	"the file locked":                                 2 * time.Second,
}

// due is how long from now recovering from it may take, if that is bounded.
func (f fault) due() time.Duration { return bounds[f.Kind] - time.Duration(history.Now()-f.Ready) }

// takenOver are the kinds after which others have to go on with the victim's slots.
var takenOver = []string{
	"SIGKILL of a relay", "SIGSTOP of a relay past its lease", "an instance comes and goes", "SIGTERM of a relay",
}

// recovery is how long a message had to wait, from a fault on, until something was published again: anything; or, where the
// victim is a relay, something of each slot that it had, by others if these have to take over.
type recovery struct {
	fault

	took time.Duration
}

// ack is a message that has got to Kafka.
type ack struct {
	at        int64
	process   string
	committed int64 // when that was told, or zero
}

// recoveries finds out how long each fault took.
func recoveries(h *history.History, faults []fault) []recovery {
	all, bySlot := acks(h)
	results := make([]recovery, 0, len(faults))
	for _, f := range faults {
		victim, _, _ := strings.Cut(f.Victim, "/")
		slots := held(h, victim, f.Begun)
		r := recovery{fault: f}
		switch {
		case slices.Contains(takenOver, f.Kind):
			for slot := range slots {
				r.took = max(r.took, untilNext(bySlot[slot], f, victim))
			}
		case len(slots) > 0:
			for slot := range slots {
				r.took = max(r.took, untilNext(bySlot[slot], f, ""))
			}
		case f.Victim == "":
			r.took = untilNext(all, f, "")
		default: // a producer or a consumer, without whom the others go on
			r.took = -1
		}
		results = append(results, r)
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
		case history.Committing, history.RolledBack, history.Attempt, history.Acked, history.Gained, history.Dropped:
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
		case history.Publishing, history.Committing, history.Committed, history.RolledBack, history.Attempt, history.Acked:
		}
	}
	return slots
}

// untilNext returns how long, after a fault, the next message had to wait that another process than one has published: since
// then, or since it was committed. One that was committed when recovering was due tells nothing about this fault.
func untilNext(acks []ack, f fault, but string) time.Duration {
	from, _ := slices.BinarySearchFunc(acks, f.Ready, func(a ack, at int64) int { return cmp.Compare(a.at, at) })
	for _, a := range acks[from:] {
		if a.process == but || a.committed == 0 {
			continue
		}
		if bound, ok := bounds[f.Kind]; ok && a.committed > f.Ready+int64(bound) {
			return 0
		}
		return time.Duration(max(a.at-max(f.Ready, a.committed), 0))
	}
	return 0 // none has come, or it would be lost
}

// table shows the recoveries by kind.
func table(all []recovery) string {
	byKind := map[string][]time.Duration{}
	for _, r := range all {
		byKind[r.Kind] = append(byKind[r.Kind], r.took)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%-48s %6s %9s %9s %9s %6s\n", "fault", "times", "median", "longest", "at most", "above")
	for _, kind := range slices.Sorted(maps.Keys(byKind)) {
		took := byKind[kind]
		fmt.Fprintf(&b, "%-48s %6d", kind, len(took))
		slices.Sort(took)
		first, _ := slices.BinarySearch(took, 0) // before that are those that nobody had to recover from
		if took = took[first:]; len(took) > 0 {
			fmt.Fprintf(&b, " %9s %9s", inMillis(took[len(took)/2]), inMillis(took[len(took)-1]))
		}
		if longest, ok := bounds[kind]; ok && len(took) > 0 {
			within, _ := slices.BinarySearch(took, longest+1)
			fmt.Fprintf(&b, " %9s %6d", inMillis(longest), len(took)-within)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func inMillis(d time.Duration) string { return fmt.Sprintf("%d ms", d.Milliseconds()) }
