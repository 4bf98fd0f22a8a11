package outbox

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"pgregory.net/rapid"
)

// simulatedStore gives messages out as the contract of LeasedStore says: those of a key ascending and in runs, none of
// a key while any of it is claimed or its first one waits. A claim after a lost one comes with another ID.
type simulatedStore struct {
	rows       []*simulatedRow // pending, ascending by id; those that are not committed included
	leased     bool
	paused     []string
	generation int                       // of claims
	orphans    map[string]simulatedClaim // whose lease was lost, by ID: for a late mark
}

// simulatedClaim is a message as it was given out.
type simulatedClaim struct {
	row     *simulatedRow
	retries int
}

// simulatedRow is a message. Of two with the same key the first must go first if it was visible before the second was
// begun: whoever published the second may have known of it.
type simulatedRow struct {
	msg            Message
	begun, visible int       // steps; visible is 0 before the commit
	due            time.Time // after a failed attempt
	claim          string    // the ID that it is claimed under, or nothing
	given          int       // the retries that it was given out with
	poison         bool      // fails always
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
		blocked[r.msg.Key] = r.msg.Key != "" && (blocked[r.msg.Key] || r.claim != "")
	}
	var msgs []Message
	for _, r := range s.rows {
		key := r.msg.Key
		switch {
		case r.visible == 0 || blocked[key] || len(msgs) == limit:
		case r.claim != "" || r.due.After(now) || slices.Contains(s.paused, r.msg.Topic) || taken[key] == runOfAKey:
			blocked[key] = key != ""
		default:
			if key != "" {
				taken[key]++
			}
			m := r.msg
			if s.generation > 0 {
				m.ID += "." + strconv.Itoa(s.generation)
			}
			r.claim, r.given = m.ID, m.Retries
			msgs = append(msgs, m)
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
		c, known := s.orphans[o.ID]
		if r := s.claimedAs(o.ID); r != nil {
			c, known = simulatedClaim{r, r.given}, true
			if r.claim = ""; o.Status == StatusPending {
				r.due = now.Add(retryWait)
			}
		}
		delete(s.orphans, o.ID)
		switch {
		case !known:
		case o.Status == StatusProcessed && !c.row.delivered:
			t.Fatalf("%s is marked as processed, and was never published", o.ID)
		case o.Status != StatusPending:
			s.remove(c.row) // whatever it is claimed under by now
		case o.Err != nil:
			c.row.msg.Retries = c.retries + 1
		}
	}
	for _, id := range m.released {
		if r := s.claimedAs(id); r != nil {
			r.claim = ""
		}
		delete(s.orphans, id)
	}
}

// claimedAs returns the message that is claimed under this ID, or nil.
func (s *simulatedStore) claimedAs(id string) *simulatedRow {
	for _, r := range s.rows {
		if r.claim == id {
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
	if s.orphans == nil || !lost {
		s.orphans = map[string]simulatedClaim{}
	}
	claimed := false
	for _, r := range s.rows {
		if r.claim != "" {
			claimed = true
			if lost {
				s.orphans[r.claim] = simulatedClaim{r, r.given}
			}
		}
		r.claim, r.due = "", time.Time{} // waits are forgotten
	}
	if claimed {
		s.generation++
	}
}

// rowID returns what an ID of a claim has of its row.
func rowID(id string) string {
	row, _, _ := strings.Cut(id, ".")
	return row
}
