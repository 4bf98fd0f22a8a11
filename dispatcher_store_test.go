package outbox

import (
	"slices"
	"time"

	"pgregory.net/rapid"
)

// simulatedStore gives messages out as the contract of LeasedStore says: those of a key ascending and in runs, none of
// a key while any of it is claimed or its first one waits.
type simulatedStore struct {
	rows   []*simulatedRow // pending, ascending by id; those that are not committed included
	leased bool
	paused []string
}

// simulatedRow is a message. Of two with the same key the first must go first if it was visible before the second was
// begun: whoever published the second may have known of it.
type simulatedRow struct {
	msg            Message
	begun, visible int       // steps; visible is 0 before the commit
	due            time.Time // after a failed attempt
	claimed        bool
	orphan         bool // claimed when the lease was lost
	given          int  // the retries that it was given out with
	poison         bool // fails always
	delivered      bool
	attempted      time.Time // the end of the last attempt that failed, of any instance
	failedHere     bool      // this dispatcher has seen that attempt
}

const runOfAKey = 4

func (s *simulatedStore) claim(limit int, now time.Time) []Message {
	if !s.leased {
		return nil
	}
	blocked, taken := map[string]bool{}, map[string]int{}
	for _, r := range s.rows {
		blocked[r.msg.Key] = r.msg.Key != "" && (blocked[r.msg.Key] || r.claimed)
	}
	var msgs []Message
	for _, r := range s.rows {
		key := r.msg.Key
		switch {
		case r.visible == 0 || blocked[key] || len(msgs) == limit:
		case r.claimed || r.due.After(now) || slices.Contains(s.paused, r.msg.Topic) || taken[key] == runOfAKey:
			blocked[key] = key != ""
		default:
			if key != "" {
				taken[key]++
			}
			r.claimed, r.orphan, r.given = true, false, r.msg.Retries
			msgs = append(msgs, r.msg)
		}
	}
	return msgs
}

// retryWait is how long the store has messages wait that have failed: by drawn times histories would differ from their
// replays.
const retryWait = 300 * time.Millisecond

// settle ends claims, also those of a lease that was lost. What it is told twice it does once.
func (s *simulatedStore) settle(t *rapid.T, m *marks, now time.Time) {
	for _, o := range m.outcomes {
		r := s.row(o.ID)
		if r == nil || (!r.claimed && !r.orphan) {
			continue
		}
		if r.claimed && o.Status == StatusPending {
			r.due = now.Add(retryWait)
		}
		r.claimed, r.orphan = false, false
		switch {
		case o.Status == StatusProcessed && !r.delivered:
			t.Fatalf("%s is marked as processed, and was never published", o.ID)
		case o.Status != StatusPending:
			s.remove(r)
		case o.Err != nil:
			r.msg.Retries = r.given + 1
		}
	}
	for _, id := range m.released {
		if r := s.row(id); r != nil {
			r.claimed, r.orphan = false, false
		}
	}
}

func (s *simulatedStore) row(id string) *simulatedRow {
	for _, r := range s.rows {
		if r.msg.ID == id {
			return r
		}
	}
	return nil
}

func (s *simulatedStore) remove(r *simulatedRow) {
	s.rows = slices.DeleteFunc(s.rows, func(other *simulatedRow) bool { return other == r })
}

// end forgets all claims; those of a lease that was lost are remembered for a late mark.
func (s *simulatedStore) end(lost bool) {
	s.leased, s.paused = false, nil
	for _, r := range s.rows {
		r.orphan = lost && (r.claimed || r.orphan)
		r.claimed, r.due = false, time.Time{} // waits are forgotten
	}
}
