package history

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Violation is a promise that a history has broken.
type Violation string

// All that [Check] looks for. The numbers are those of the promises in README.md.
const (
	Lost            Violation = "lost"                // P2: committed, and not in the broker
	Phantom         Violation = "phantom"             // P3: in the broker, and not committed
	Undone          Violation = "undone"              // P1: told that it committed, and gone from the database
	OutOfOrder      Violation = "out of order"        // P4
	WithoutLease    Violation = "without a lease"     // two relays publish one key at a time
	EffectTwice     Violation = "effect twice"        // P5
	EffectMissing   Violation = "effect missing"      // P5: delivered, and not handled
	EffectOfNothing Violation = "effect of nothing"   // P5: handled, and never delivered
	OutputMissing   Violation = "output missing"      // P5: handled, and what it published is not in the broker
	Torn            Violation = "torn"                // P1: a part of a transaction's messages has committed
	Altered         Violation = "altered"             // P2: not as it was published
	Early           Violation = "early"               // delayed, and published before it was due
	Stuck           Violation = "stuck"               // P2: rows are left though everything works
	Impossible      Violation = "impossible to judge" // the records contradict themselves
)

// maxExamples is how many cases of a violation a report describes.
const maxExamples = 5

// Report is what [Check] has found.
type Report struct {
	Counts   map[Violation]int
	Examples map[Violation][]string

	Messages, Transactions, RolledBack, Duplicates, Effects int
}

// NewReport returns one that has found nothing.
func NewReport() *Report {
	return &Report{Counts: map[Violation]int{}, Examples: map[Violation][]string{}}
}

func (r *Report) addf(v Violation, format string, args ...any) {
	r.Counts[v]++
	if len(r.Examples[v]) < maxExamples {
		r.Examples[v] = append(r.Examples[v], fmt.Sprintf(format, args...))
	}
}

// OK tells that no promise was broken.
func (r *Report) OK() bool { return len(r.Counts) == 0 }

// Add adds what another report has found.
func (r *Report) Add(other *Report) {
	for v, n := range other.Counts {
		r.Counts[v] += n
		r.Examples[v] = append(r.Examples[v], other.Examples[v]...)
	}
	r.Messages += other.Messages
	r.Transactions += other.Transactions
	r.RolledBack += other.RolledBack
	r.Duplicates += other.Duplicates
	r.Effects += other.Effects
}

// Totals is one line.
func (r *Report) Totals() string {
	all := 0
	for _, n := range r.Counts {
		all += n
	}
	return fmt.Sprintf("%d messages, %d transactions (%d rolled back), %d effects, %d duplicates; lost %d, phantom %d, out of order %d, "+
		"effects twice %d, stuck %d, violations in all %d", r.Messages, r.Transactions, r.RolledBack, r.Effects, r.Duplicates,
		r.Counts[Lost], r.Counts[Phantom], r.Counts[OutOfOrder], r.Counts[EffectTwice], r.Counts[Stuck], all)
}

// String has the totals, and some cases of each violation.
func (r *Report) String() string {
	var b strings.Builder
	b.WriteString(r.Totals())
	for _, v := range slices.Sorted(maps.Keys(r.Counts)) {
		fmt.Fprintf(&b, "\n%s: %d", v, r.Counts[v])
		for _, example := range r.Examples[v] {
			fmt.Fprintf(&b, "\n  %s", example)
		}
	}
	return b.String()
}

// transaction is what is known of one.
type transaction struct {
	ending    int64 // when its commit began, or zero where nobody has told
	ended     int64 // when it was known to have committed, or zero
	committed bool
	seen      int64 // when a relay first published of it, which it can only have committed before; or zero
	undone    bool
	messages  int // that it is told to publish
	kept      int // of those, the ones that were sent
}

// known is what the records say of a message.
type known struct {
	Message

	tx        *transaction
	published int64 // when its Publish began
	ordinal   int   // among those of its transaction
}

// Check compares the records with the end.
func Check(h *History) *Report {
	r := NewReport()
	messages := h.known(r)
	first := h.first(r)
	h.checkSent(r, messages, first)
	for _, l := range h.Landings {
		if l.Altered != "" {
			r.addf(Altered, "%s in topic %s: %s", l.ID, l.Topic, l.Altered)
		}
	}
	for id, l := range first {
		if _, sent := h.Sent[id]; !sent {
			r.addf(Phantom, "%s is in topic %s, and no transaction that committed has published it", id, l.Topic)
		}
	}
	for id, m := range messages {
		_, sent := h.Sent[id]
		if m.tx.committed && !sent {
			r.addf(Undone, "%s was published by a transaction that has committed, and its row in the table of the same transaction is gone", id)
		}
		if m.tx.undone && sent {
			r.addf(Impossible, "%s was published by a transaction that was rolled back, and its row is in the table", id)
		}
	}
	if h.Left > 0 {
		r.addf(Stuck, "%d rows are left in the outbox", h.Left)
	}
	r.Messages = len(h.Sent)
	h.checkAttempts(r, messages, first)
	h.checkOrder(r, messages, first)
	h.checkLeases(r)
	h.checkEffects(r, first)
	return r
}

// known puts together what the records say of each message.
func (h *History) known(r *Report) map[string]*known {
	slices.SortStableFunc(h.Events, func(a, b Event) int { return cmp.Compare(a.At, b.At) })
	transactions, messages, ordinals := map[string]*transaction{}, map[string]*known{}, map[string]int{}
	of := func(e Event) *transaction {
		tx := transactions[e.Tx]
		if tx == nil {
			tx = &transaction{}
			transactions[e.Tx] = tx
		}
		return tx
	}
	for _, e := range h.Events {
		switch e.Kind {
		case Publishing:
			tx := of(e)
			for _, m := range e.Messages {
				if messages[m.ID] != nil {
					r.addf(Impossible, "%s was told of twice", m.ID)
				}
				ordinals[e.Tx]++
				tx.messages++
				messages[m.ID] = &known{Message: m, tx: tx, published: e.At, ordinal: ordinals[e.Tx]}
			}
		case Committing:
			of(e).ending = e.At
		case Committed:
			tx := of(e)
			tx.ended, tx.committed = e.At, true
		case RolledBack:
			of(e).undone = true
			r.RolledBack++
		case Attempt, Acked, Gained, Dropped:
		}
	}
	r.Transactions = len(transactions)
	return messages
}

// checkSent looks at all that has committed.
func (h *History) checkSent(r *Report, messages map[string]*known, first map[string]Landing) {
	for id, sent := range h.Sent {
		if _, landed := first[id]; !landed {
			r.addf(Lost, "%s of key %q has committed, and is not in the broker", id, sent.Key)
		}
		if m := messages[id]; m == nil {
			r.addf(Impossible, "%s was sent, and nobody has told that it is to be published", id)
		} else if m.Number != sent.Number || m.Key != sent.Key {
			r.addf(Impossible, "%s was sent with key %q and number %d, and told of with %q and %d", id, sent.Key, sent.Number, m.Key, m.Number)
		} else {
			m.tx.kept++
		}
	}
	for id, m := range messages {
		if m.tx.kept > 0 && m.tx.kept < m.tx.messages {
			r.addf(Torn, "%s was published by a transaction of whose %d messages %d have committed", id, m.tx.messages, m.tx.kept)
		}
	}
}

// checkAttempts looks for messages that were handed to the broker's client before they may be: before their transaction
// began to commit, or before they fell due.
func (h *History) checkAttempts(r *Report, messages map[string]*known, first map[string]Landing) {
	attempted := make(map[string]bool, len(first))
	for _, e := range h.Events {
		if e.Kind != Attempt {
			continue
		}
		for _, of := range e.Messages {
			attempted[of.ID] = true
			_, sent := h.Sent[of.ID]
			switch m := messages[of.ID]; {
			case !sent:
				r.addf(Phantom, "%s was handed to the broker's client, and no transaction that committed has published it", of.ID)
			case m == nil: // nobody has told of it
			case e.At < m.tx.ending:
				r.addf(Phantom, "%s was published before its transaction began to commit", of.ID)
			case e.At < m.published+m.Delay:
				r.addf(Early, "%s was published %d ms before it was due", of.ID, (m.published+m.Delay-e.At)/1e6)
			case m.tx.seen == 0:
				m.tx.seen = e.At
			}
		}
	}
	for id := range first {
		if !attempted[id] {
			r.addf(Impossible, "%s is in the broker, and no relay has published it", id)
		}
	}
}

// first returns where each message landed first.
func (h *History) first(r *Report) map[string]Landing {
	first := make(map[string]Landing, len(h.Sent))
	for _, l := range h.Landings {
		other, again := first[l.ID]
		if again {
			r.Duplicates++
		}
		if !again || l.isBefore(other) {
			first[l.ID] = l
		}
	}
	return first
}

func (l Landing) isBefore(other Landing) bool {
	if l.Topic == other.Topic && l.Partition == other.Partition {
		return l.Offset < other.Offset
	}
	return l.Time < other.Time
}

func (h *History) checkEffects(r *Report, first map[string]Landing) {
	type handled struct{ group, id string }
	effects := map[handled]int{}
	for _, e := range h.Effects {
		effects[handled{e.Group, e.ID}]++
		if _, landed := first[e.ID]; !landed {
			r.addf(EffectOfNothing, "%s has handled %s, which is not in the broker", e.Group, e.ID)
		}
		if _, landed := first[e.Output]; e.Output != "" && !landed {
			r.addf(OutputMissing, "%s has handled %s, and its output %s is not in the broker", e.Group, e.ID, e.Output)
		}
	}
	for of, n := range effects {
		if n > 1 {
			r.addf(EffectTwice, "%s has handled %s %d times", of.group, of.id, n)
		}
	}
	r.Effects = len(h.Effects)
	if h.Wanted == nil {
		return
	}
	for id, l := range first {
		for _, group := range h.Wanted(l) {
			if effects[handled{group, id}] == 0 {
				r.addf(EffectMissing, "%s has not handled %s", group, id)
			}
		}
	}
}
