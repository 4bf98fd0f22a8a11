package history

import (
	"cmp"
	"maps"
	"slices"
)

// position is where a message of a key has landed first.
type position struct {
	Landing

	message *known
}

// checkOrder looks for messages of a key that landed after one that they had to come before: one that was published later in
// the same transaction, or in one that began to publish it after theirs had committed, or that has a higher number.
//
// Within a partition the broker's offsets tell what came first, between partitions its time does. What has the same time
// there may have come in any order.
func (h *History) checkOrder(r *Report, messages map[string]*known, first map[string]Landing) {
	byKey := map[string][]position{}
	for id, l := range first {
		if m := messages[id]; m != nil && m.Key != "" && m.Delay == 0 { // a delayed one comes when it is due
			byKey[m.Key] = append(byKey[m.Key], position{l, m})
		}
	}
	for _, all := range byKey {
		type partition struct {
			topic  string
			number int32
		}
		partitions := map[partition][]position{}
		for _, p := range all {
			of := partition{p.Topic, p.Partition}
			partitions[of] = append(partitions[of], p)
		}
		for one := range maps.Values(partitions) {
			slices.SortFunc(one, func(a, b position) int { return cmp.Compare(a.Offset, b.Offset) })
			checkSequence(r, one, func(a, b position) bool { return a.Offset == b.Offset })
		}
		if len(partitions) > 1 {
			slices.SortFunc(all, func(a, b position) int { return cmp.Compare(a.Time, b.Time) })
			checkSequence(r, all, func(a, b position) bool { return a.Time == b.Time })
		}
	}
}

// checkSequence looks at messages of one key in the order in which they landed.
func checkSequence(r *Report, landed []position, together func(a, b position) bool) {
	s := sequence{last: map[*transaction]*known{}}
	for i := 0; i < len(landed); {
		end := i + 1
		for end < len(landed) && together(landed[i], landed[end]) {
			end++
		}
		for _, p := range landed[i:end] {
			if why, before := s.isOvertaken(p.message); before != nil {
				r.addf(OutOfOrder, "of key %q, %s landed after %s, %s", p.message.Key, p.message.ID, before.ID, why)
			}
		}
		for _, p := range landed[i:end] {
			s.add(p.message)
		}
		i = end
	}
}

// sequence is what of a key has landed up to now, as far as it decides what may land no more.
type sequence struct {
	latest  *known                  // the one whose Publish began last
	highest *known                  // by number
	last    map[*transaction]*known // of each transaction, by ordinal
}

func (s *sequence) add(m *known) {
	if s.latest == nil || m.published > s.latest.published {
		s.latest = m
	}
	if s.highest == nil || m.Number > s.highest.Number {
		s.highest = m
	}
	if last := s.last[m.tx]; last == nil || m.ordinal > last.ordinal {
		s.last[m.tx] = m
	}
}

// isOvertaken returns a message that has landed, though m had to come before it.
func (s *sequence) isOvertaken(m *known) (why string, by *known) {
	if last := s.last[m.tx]; last != nil && last.ordinal > m.ordinal {
		return "which was published later in the same transaction", last
	}
	if end := m.tx.hadCommitted(); s.latest != nil && end != 0 && end < s.latest.published {
		return "whose Publish began when it had committed", s.latest
	}
	if s.highest != nil && m.Number != 0 && m.Number < s.highest.Number {
		return "which has a higher number", s.highest
	}
	return "", nil
}

// hadCommitted returns a time by which the transaction had committed: when that was told, or a relay published of it. Zero is
// never, as far as anybody knows.
func (tx *transaction) hadCommitted() int64 {
	switch {
	case tx.seen != 0 && (tx.ended == 0 || tx.seen < tx.ended):
		return tx.seen
	case tx.committed:
		return tx.ended
	}
	return 0
}
