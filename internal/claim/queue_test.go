package claim

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/watermill-outbox/outbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func row(id int64, key string) Row {
	return Row{ID: id, Key: key, Topic: "t", Message: &outbox.Message{ID: fmt.Sprint(id), Key: key, Topic: "t"}}
}

func ids(msgs []*outbox.Message) []string {
	var all []string
	for _, m := range msgs {
		all = append(all, m.ID)
	}
	return all
}

const much = 1 << 30

func TestQueue_ClaimsARunOfAKey_AndNoMoreOfItUntilAllAreDone(t *testing.T) {
	q := New(3, much, much)
	for id := range int64(5) {
		q.Add(row(id+1, "k"))
	}
	q.Add(row(6, "other"))
	require.Equal(t, []string{"1", "2", "3", "6"}, ids(q.Claim(0, 10, much)))
	q.Done(1)
	q.Done(3)
	require.Empty(t, q.Wanted(0, 10))
	require.Empty(t, q.Claim(0, 10, much))
	q.Done(2)
	require.Equal(t, []int64{4, 5}, q.Wanted(0, 10), "their payloads were not kept so far from their turn")
	q.Load(4, 0, row(4, "k").Message)
	q.Load(5, 0, row(5, "k").Message)
	require.Equal(t, []string{"4", "5"}, ids(q.Claim(0, 10, much)))
}

func TestQueue_ALateIDTakesItsPlace(t *testing.T) {
	q := New(10, much, much)
	q.Add(row(7, "k"))
	q.Add(row(9, "k"))
	q.Add(row(5, "k"))
	require.Equal(t, []string{"5", "7", "9"}, ids(q.Claim(0, 10, much)))
}

func TestQueue_APostponedMessageHoldsBackItsKey_AndNoOther(t *testing.T) {
	q := New(10, much, much)
	q.Add(row(1, "a"))
	q.Add(row(2, "a"))
	q.Add(row(3, "b"))
	require.Equal(t, []string{"1", "2", "3"}, ids(q.Claim(0, 10, much)))
	q.Postpone(1, 100)
	q.Release(2)
	q.Done(3)
	q.Add(row(4, "b"))
	require.Equal(t, []string{"4"}, ids(q.Claim(99, 10, much)))
	require.Empty(t, q.Wanted(99, 10))
	require.Equal(t, []int64{1, 2}, q.Wanted(100, 10), "its row, and those behind that gave up their payloads")
	q.Load(1, 0, row(1, "a").Message)
	q.Gone(2)
	require.Equal(t, []string{"1"}, ids(q.Claim(100, 10, much)))
}

func TestQueue_AHeadThatHasVanishedDoesNotBlockItsKey(t *testing.T) {
	q := New(10, much, much)
	q.Add(row(1, "a"))
	q.Add(row(2, "a"))
	q.Claim(0, 1, much)
	q.Postpone(1, 100)
	q.Gone(1)
	require.Equal(t, []int64{2}, q.Wanted(0, 10))
}

func TestQueue_ReadsThatBeganBeforeASettlementDoNotBringItBack(t *testing.T) {
	q := New(10, much, much)
	q.Add(row(1, "a"))
	q.Claim(0, 1, much)
	q.BeginRead()
	q.Done(1)
	q.Add(row(1, "a")) // the snapshot was older than the mark
	q.EndRead()
	require.Zero(t, q.Len())
}

func TestQueue_PausedTopicsStayAndHoldNobodyElseBack(t *testing.T) {
	q := New(10, much, much)
	down := row(1, "a")
	down.Topic = "down"
	q.Add(down)
	q.Add(row(2, "a"))
	q.Add(row(3, "b"))
	q.Pause([]string{"down"})
	require.Equal(t, []string{"3"}, ids(q.Claim(0, 10, much)))
	require.Zero(t, q.Ready(0))
	q.Pause(nil)
	require.Equal(t, []string{"1", "2"}, ids(q.Claim(0, 10, much)))
}

func TestQueue_ClaimsOneMessageAboveTheByteBudget_AndNotTwo(t *testing.T) {
	q := New(10, much, much)
	q.Add(row(1, ""))
	q.Add(row(2, ""))
	require.Len(t, q.Claim(0, 10, 1), 1)
	require.Len(t, q.Claim(0, 10, 1), 1)
}

func TestQueue_KeepsTheOrderOfAKeyThatLostItsTail(t *testing.T) {
	const perKey, capacity, total = 2, 40, 200
	q := New(perKey, capacity, much)
	for id := int64(1); id <= total; id++ {
		q.Add(row(id, "long"))
	}
	require.LessOrEqual(t, q.Len(), capacity)
	next := int64(1)
	for range 10 * total {
		if from, wanted := q.Refill(); wanted {
			var rows []Row
			for id := from; id < min(from+7, total+1); id++ {
				rows = append(rows, row(id, "long"))
			}
			through := min(from+6, total)
			q.AddRefill(rows, through, through == total)
		}
		for _, id := range q.Wanted(0, 10) {
			q.Load(id, 0, row(id, "long").Message)
		}
		for _, id := range ids(q.Claim(0, 10, much)) {
			require.Equal(t, fmt.Sprint(next), id)
			q.Done(next)
			next++
		}
	}
	require.EqualValues(t, total+1, next)
	require.Zero(t, q.Len())
	require.Empty(t, q.lists)
}

// model is a Queue that keeps everything in one sorted slice and looks at all of it each time.
type model struct {
	rows    []*modelRow
	paused  []string
	settled map[int64]bool
}

type modelRow struct {
	Row
	claimed bool
	loaded  bool
}

func (m *model) find(id int64) *modelRow {
	for _, r := range m.rows {
		if r.ID == id {
			return r
		}
	}
	return nil
}

// mayClaim lists the ids that the rules of the package allow to be claimed next, one run for each key.
func (m *model) mayClaim(now int64) map[int64]bool {
	allowed := map[int64]bool{}
	blocked := map[string]bool{}
	for _, r := range m.rows {
		if r.claimed && r.Key != "" {
			blocked[r.Key] = true
		}
	}
	for _, r := range m.rows {
		ok := !r.claimed && r.loaded && r.Due <= now && !slices.Contains(m.paused, r.Topic)
		if r.Key == "" {
			allowed[r.ID] = ok
			continue
		}
		ok = ok && !blocked[r.Key]
		blocked[r.Key] = !ok
		allowed[r.ID] = ok
	}
	return allowed
}

// TestQueue_AgreesWithAModel runs random histories against the model: what is claimed is allowed, comes ascending for
// each key, and nothing that is allowed is held back for good.
func TestQueue_AgreesWithAModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		q := New(rapid.IntRange(1, 4).Draw(t, "perKey"), much, much)
		m := &model{}
		now, nextID := int64(0), int64(10)
		pick := func(t *rapid.T, claimed bool) *modelRow {
			var of []*modelRow
			for _, r := range m.rows {
				if r.claimed == claimed {
					of = append(of, r)
				}
			}
			if len(of) == 0 {
				t.Skip("nothing to pick")
			}
			return rapid.SampledFrom(of).Draw(t, "row")
		}
		claim := func(t *rapid.T) {
			for _, id := range q.Wanted(now, 100) {
				r := m.find(id)
				q.Load(id, r.Due, r.Message)
			}
			for _, r := range m.rows {
				if e := q.entries[r.ID]; e != nil {
					r.loaded = e.msg != nil
				}
			}
			allowed := m.mayClaim(now)
			limit := rapid.IntRange(1, 20).Draw(t, "limit")
			any := slices.Contains(slices.Collect(maps.Values(allowed)), true)
			claimed := q.Claim(now, limit, much)
			if len(claimed) == 0 && any {
				t.Fatalf("nothing was claimed, though there is something to claim")
			}
			last := map[string]int64{}
			for _, msg := range claimed {
				var id int64
				fmt.Sscan(msg.ID, &id)
				if !allowed[id] {
					t.Fatalf("%d of key %q must not be claimed", id, msg.Key)
				}
				if msg.Key != "" && id < last[msg.Key] {
					t.Fatalf("%d comes after %d of the same key", id, last[msg.Key])
				}
				last[msg.Key] = id
				m.find(id).claimed = true
			}
			// A run has no gap: whoever is claimed has nobody of its key before it that is not.
			for _, r := range m.rows {
				for _, other := range m.rows {
					if r.Key != "" && r.Key == other.Key && other.ID < r.ID && last[r.Key] == r.ID && !other.claimed {
						t.Fatalf("%d was claimed before %d of the same key", r.ID, other.ID)
					}
				}
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				nextID += 2
				id := nextID
				if rapid.Bool().Draw(t, "late") {
					id = nextID - 5
				}
				if m.find(id) != nil {
					t.Skip("known")
				}
				r := row(id, rapid.SampledFrom([]string{"", "a", "b", "c"}).Draw(t, "key"))
				r.Topic = rapid.SampledFrom([]string{"t", "u"}).Draw(t, "topic")
				r.Due = rapid.SampledFrom([]int64{0, 0, 0, now + 5}).Draw(t, "due")
				m.rows = append(m.rows, &modelRow{Row: r})
				slices.SortFunc(m.rows, func(a, b *modelRow) int { return int(a.ID - b.ID) })
				q.Add(r)
			},
			"claim": claim,
			"done": func(t *rapid.T) {
				r := pick(t, true)
				m.rows = slices.DeleteFunc(m.rows, func(o *modelRow) bool { return o == r })
				q.Done(r.ID)
			},
			"postpone": func(t *rapid.T) {
				r := pick(t, true)
				r.claimed, r.Due = false, now+rapid.Int64Range(0, 9).Draw(t, "wait")
				q.Postpone(r.ID, r.Due)
			},
			"release": func(t *rapid.T) {
				r := pick(t, true)
				r.claimed = false
				q.Release(r.ID)
			},
			"gone": func(t *rapid.T) {
				r := pick(t, false)
				m.rows = slices.DeleteFunc(m.rows, func(o *modelRow) bool { return o == r })
				q.Gone(r.ID)
			},
			"time": func(*rapid.T) { now += 3 },
			"pause": func(t *rapid.T) {
				m.paused = rapid.SampledFrom([][]string{nil, {"t"}, {"u"}}).Draw(t, "p")
				q.Pause(m.paused)
			},
			"": func(t *rapid.T) {
				if q.Len() != len(m.rows) {
					t.Fatalf("the queue knows %d messages, not %d", q.Len(), len(m.rows))
				}
				idle := 0
				for _, e := range q.entries {
					if e.msg != nil && !e.claimed {
						idle += e.msg.Size()
					}
				}
				if idle != q.idle {
					t.Fatalf("idle is %d, should be %d", q.idle, idle)
				}
			},
		})
		m.paused, now = nil, now+100
		q.Pause(nil)
		for range 200 {
			for _, r := range slices.Clone(m.rows) {
				if r.claimed {
					m.rows = slices.DeleteFunc(m.rows, func(o *modelRow) bool { return o == r })
					q.Done(r.ID)
				}
			}
			if len(m.rows) == 0 {
				break
			}
			claim(t)
		}
		if len(m.rows) > 0 || q.Len() > 0 || len(q.lists) > 0 {
			t.Fatalf("%d messages are stuck, %d lists left", len(m.rows), len(q.lists))
		}
	})
}
