package claim

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"
)

// table is what a relay reads from: rows by id, until they are done. Late ones are committed, or fall due, after reads
// have passed their ids.
type table struct {
	rows map[int64]Row
	late map[int64]Row
	last int64
}

func (s *table) read(after, through int64, limit int) []Row {
	var rows []Row
	for id := after + 1; id <= min(through, s.last) && len(rows) < limit; id++ {
		if r, ok := s.rows[id]; ok {
			rows = append(rows, r)
		}
	}
	return rows
}

// refill reads on behind lists that were cut, as the engine does.
func (s *table) refill(q *Queue, from, cursor int64) {
	const limit = 7
	rows := s.read(from-1, cursor, limit)
	through := cursor
	if len(rows) == limit {
		through = rows[limit-1].ID
	}
	for i := range rows {
		rows[i].Message = nil
	}
	q.AddRefill(rows, from, through, through == cursor)
}

// A queue that is much too small for the backlog, fed as the engine feeds it, gives out every row, and those of a key in
// order, whatever fails in between.
func TestQueue_WithLittleMemory_LosesNothingAndKeepsOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := &table{rows: map[int64]Row{}, late: map[int64]Row{}}
		q := New(rapid.IntRange(1, 3).Draw(t, "perKey"), rapid.IntRange(10, 40).Draw(t, "capacity"), 2000)
		keys := rapid.IntRange(1, 6).Draw(t, "keys")
		total := rapid.IntRange(1, 300).Draw(t, "total")
		var cursor, passed, now int64
		add := func(n int) {
			for ; n > 0 && s.last < int64(total); n-- {
				s.last++
				key := ""
				if k := rapid.IntRange(0, keys).Draw(t, "key"); k > 0 {
					key = fmt.Sprint(k)
				}
				to := s.rows
				if rapid.IntRange(0, 4).Draw(t, "late") == 0 {
					to = s.late
				}
				r := row(s.last, key)
				r.Topic = rapid.SampledFrom([]string{"t", "t", "u"}).Draw(t, "topic")
				to[s.last] = r
			}
		}
		for step := 0; len(s.rows)+len(s.late) > 0 || s.last < int64(total); step++ {
			if step > 5000 {
				t.Fatalf("%d rows are stuck, of which the queue knows %d", len(s.rows), q.Len())
			}
			add(rapid.IntRange(0, 30).Draw(t, "new"))
			passed = max(passed, cursor) // what is read again for want of memory was read before
			for id := int64(1); id <= passed; id++ {
				if r, ok := s.late[id]; ok && rapid.IntRange(0, 9).Draw(t, "appears") == 0 {
					delete(s.late, id)
					s.rows[id] = r
					// Where reads go over their ground again they bring it themselves.
					if l := q.lists[listID{0, r.Key}]; id <= cursor || (l != nil && len(l.entries) > 0 && l.entries[len(l.entries)-1].id > id) {
						q.Add(r)
					}
				}
			}
			if len(s.late) > 0 && passed < s.last {
				for id := passed + 1; id <= s.last; id++ { // what appears ahead of the reads is not late
					if r, ok := s.late[id]; ok && rapid.Bool().Draw(t, "early") {
						delete(s.late, id)
						s.rows[id] = r
					}
				}
			}
			if step < 2000 && rapid.IntRange(0, 9).Draw(t, "pauses") == 0 {
				q.Pause(rapid.SampledFrom([][]string{{"t"}, {"u"}, {"u"}, nil}).Draw(t, "paused"))
			} else if step >= 2000 {
				q.Pause(nil)
			}
			if from, wanted := q.Reread(); wanted {
				cursor = min(cursor, from-1)
			}
			if from, wanted := q.Refill(); wanted {
				s.refill(q, from, cursor)
			}
			for _, id := range q.Wanted(now, 5) {
				q.Load(id, s.rows[id].Message)
			}
			if !q.Full() {
				for _, r := range s.read(cursor, s.last, 10) {
					q.Add(r)
					cursor = r.ID
				}
			}
			for _, m := range q.Claim(now, rapid.IntRange(1, 10).Draw(t, "limit"), 1<<20) {
				var id int64
				if _, err := fmt.Sscan(m.ID, &id); err != nil {
					t.Fatal(err)
				}
				switch {
				case step < 2000 && rapid.IntRange(0, 5).Draw(t, "fails") == 0:
					q.Postpone(id, now+rapid.Int64Range(0, 20).Draw(t, "wait"))
					fallthrough // what is behind it comes back, too, as the dispatcher sees to
				case m.Key != "" && q.entries[id] != nil && q.entries[id].list.entries[0].id < id:
					q.Release(id)
				default:
					for other := range s.rows {
						if m.Key != "" && s.rows[other].Key == m.Key && other < id {
							t.Fatalf("%d of key %q comes before %d", id, m.Key, other)
						}
					}
					delete(s.rows, id)
					q.Done(id)
				}
			}
			now += 2
		}
		q.Pause(nil)
		q.Reread()
		for from, wanted := q.Refill(); wanted; from, wanted = q.Refill() { // finds that there is nothing behind the gaps
			s.refill(q, from, cursor)
		}
		if q.Len() > 0 || len(q.lists) > 0 || len(q.truncated) > 0 || q.idle != 0 {
			t.Fatalf("the queue still has %d entries, %d lists, %d cut ones, %d bytes", q.Len(), len(q.lists),
				len(q.truncated), q.idle)
		}
	})
}
