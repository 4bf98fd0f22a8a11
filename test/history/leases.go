package history

// turn is a call for a key that a relay has begun.
type turn struct {
	process string
	at      int64
}

// holder is what is known of a relay.
type holder struct {
	gained map[int]int64 // by slot, when it was told last
	late   map[int]int   // by slot, calls since it was told last that it has lost that, or has it again
}

func (h *holder) allLate() (n int) {
	for _, calls := range h.late {
		n += calls
	}
	return n
}

// checkLeases looks for relays that publish what another one has taken over: that begin a call for a key after another
// relay, which has gained the slot later, has begun one for it.
//
// Who is frozen between the look at the lease and the call begins that call late, and nothing can prevent that: as many
// such calls as there are workers are allowed, for all slots together, until it has been told that theirs are lost.
func (h *History) checkLeases(r *Report) {
	turns, holders := map[string]turn{}, map[string]*holder{} // by key, and by process
	for _, e := range h.Events {
		of := holders[e.Process]
		if of == nil {
			of = &holder{gained: map[int]int64{}, late: map[int]int{}}
			holders[e.Process] = of
		}
		switch e.Kind {
		case Gained:
			for _, slot := range e.Slots {
				of.gained[slot] = e.At
				delete(of.late, slot)
			}
		case Dropped:
			for _, slot := range e.Slots {
				delete(of.late, slot)
			}
		case Publishing, Committing, Committed, RolledBack, Acked:
		case Attempt:
			for _, m := range e.Messages {
				last, slot := turns[m.Key], h.Slots[m.Key]
				if m.Key == "" || last.process == "" || last.process == e.Process ||
					of.gained[slot] > last.at || of.gained[slot] > holders[last.process].gained[slot] {
					turns[m.Key] = turn{e.Process, e.At}
					continue
				}
				if of.late[slot]++; of.allLate() > h.Concurrency {
					r.addf(WithoutLease, "%s has begun to publish %s of key %q, after %s had taken its slot over and begun to",
						e.Process, m.ID, m.Key, last.process)
				}
			}
		}
	}
}
