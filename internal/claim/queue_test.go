package claim

import (
	"fmt"
	"slices"
	"strconv"
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
	q.Load(4, row(4, "k").Message)
	q.Load(5, row(5, "k").Message)
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
	q.Load(1, row(1, "a").Message)
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
			q.AddRefill(rows, from, through, through == total)
		}
		for _, id := range q.Wanted(0, 10) {
			q.Load(id, row(id, "long").Message)
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

// Found by TestQueue_WithLittleMemory_LosesNothingAndKeepsOrder.
func TestQueue_ReadingOnForOneKey_DoesNotSkipTheGapOfAnother(t *testing.T) {
	q := New(1, 8, much)
	for id := int64(1); id <= 8; id++ {
		q.Add(row(id, "early"))
	}
	q.Add(row(9, "late")) // early is cut to 1…4
	for id := int64(10); id <= 13; id++ {
		q.Add(row(id, "late")) // and late to 9…11
	}
	for id := int64(9); id <= 11; id++ {
		q.Load(id, row(id, "late").Message)
		for _, m := range q.Claim(0, 10, much) {
			if m.Key == "late" {
				q.Done(id)
			} else {
				q.Postpone(1, 1000)
			}
		}
	}
	from, wanted := q.Refill()
	require.True(t, wanted)
	require.Greater(t, from, int64(8), "late has run low, early waits with its four")
	q.AddRefill([]Row{row(12, "late"), row(13, "late")}, from, 13, true)
	early := q.lists[listID{0, "early"}]
	require.EqualValues(t, 5, early.more, "5…8 have not been read again")
}

func TestQueue_CuttingALongList_KeepsWhatIsClaimed(t *testing.T) {
	q := New(1, 8, much)
	q.Add(row(100, "k"))
	q.Claim(0, 1, much)
	for id := int64(1); id <= 9; id++ { // all of them late
		q.Add(row(id, "k"))
	}
	_, _, claimed := q.Get(100)
	require.True(t, claimed)
	q.Done(100)
	require.Zero(t, q.Claimed())
	require.Equal(t, []string{"1"}, ids(q.Claim(0, 10, much)))
}

func TestQueue_DoesNotAskForMorePayloadThanMayWait(t *testing.T) {
	q := New(4, much, 1000)
	for id := int64(1); id <= 100; id++ {
		q.Add(row(id, fmt.Sprint(id%50)))
	}
	require.True(t, q.Sated())
	require.Empty(t, q.Wanted(0, 100), "there is something to claim already")
	for _, m := range q.Claim(0, 100, much) {
		require.Equal(t, "t", m.Topic)
	}
	require.False(t, q.Sated())
	require.NotEmpty(t, q.Wanted(0, 100))
}

func TestQueue_DoneOfAMessageThatIsNoLongerClaimed_KeepsItFromComingBack(t *testing.T) {
	q := New(4, much, much)
	q.BeginRead()
	q.Done(1) // it was claimed under a lease that was lost
	q.Add(row(1, "a"))
	q.EndRead()
	q.Add(row(2, "a"))
	q.Done(2)
	require.Zero(t, q.Len())
}

// history runs a Queue beside a model, which keeps everything in one sorted slice and looks at all of it each time.
type history struct {
	q      *Queue
	rows   []*modelRow
	paused []string
	now    int64
	nextID int64
}

type modelRow struct {
	Row
	claimed bool
	loaded  bool
}

func (h *history) find(id int64) *modelRow {
	for _, r := range h.rows {
		if r.ID == id {
			return r
		}
	}
	return nil
}

func (h *history) remove(gone *modelRow) {
	h.rows = slices.DeleteFunc(h.rows, func(r *modelRow) bool { return r == gone })
}

func (h *history) pick(t *rapid.T, claimed bool) *modelRow {
	var of []*modelRow
	for _, r := range h.rows {
		if r.claimed == claimed {
			of = append(of, r)
		}
	}
	if len(of) == 0 {
		t.Skip("nothing to pick")
	}
	return rapid.SampledFrom(of).Draw(t, "row")
}

// mayClaim lists the ids that the rules of the package allow to be claimed next, for each key a run.
func (h *history) mayClaim() map[int64]bool {
	allowed := map[int64]bool{}
	blocked := map[string]bool{}
	for _, r := range h.rows {
		if r.claimed && r.Key != "" {
			blocked[r.Key] = true
		}
	}
	for _, r := range h.rows {
		ok := !r.claimed && r.loaded && r.Due <= h.now && !slices.Contains(h.paused, r.Topic)
		if r.Key != "" {
			ok = ok && !blocked[r.Key]
			blocked[r.Key] = !ok
		}
		if ok {
			allowed[r.ID] = true
		}
	}
	return allowed
}

func (h *history) add(t *rapid.T) {
	h.nextID += 2
	id := h.nextID
	if rapid.Bool().Draw(t, "late") {
		id = h.nextID - 5
	}
	if h.find(id) != nil {
		t.Skip("known")
	}
	r := row(id, rapid.SampledFrom([]string{"", "a", "b", "c"}).Draw(t, "key"))
	r.Topic = rapid.SampledFrom([]string{"t", "u"}).Draw(t, "topic")
	r.Due = rapid.SampledFrom([]int64{0, 0, 0, h.now + 5}).Draw(t, "due")
	h.rows = append(h.rows, &modelRow{Row: r})
	slices.SortFunc(h.rows, func(a, b *modelRow) int { return int(a.ID - b.ID) })
	h.q.Add(r)
}

func (h *history) claim(t *rapid.T) {
	for _, id := range h.q.Wanted(h.now, 100) {
		r := h.find(id)
		h.q.Load(id, r.Message)
	}
	for _, r := range h.rows {
		if e := h.q.entries[r.ID]; e != nil {
			r.loaded = e.msg != nil
		}
	}
	allowed := h.mayClaim()
	claimed := h.q.Claim(h.now, rapid.IntRange(1, 20).Draw(t, "limit"), much)
	if len(claimed) == 0 && len(allowed) > 0 {
		t.Fatalf("nothing was claimed, though there is something to claim")
	}
	last := map[string]int64{}
	for _, msg := range claimed {
		id, err := strconv.ParseInt(msg.ID, 10, 64)
		if err != nil || !allowed[id] {
			t.Fatalf("%s of key %q must not be claimed", msg.ID, msg.Key)
		}
		if msg.Key != "" && id < last[msg.Key] {
			t.Fatalf("%d comes after %d of the same key", id, last[msg.Key])
		}
		last[msg.Key] = id
		h.find(id).claimed = true
	}
	for _, r := range h.rows {
		if r.Key != "" && r.ID < last[r.Key] && !r.claimed {
			t.Fatalf("%d was claimed before %d of the same key", last[r.Key], r.ID)
		}
	}
}

func (h *history) done(t *rapid.T) {
	r := h.pick(t, true)
	h.remove(r)
	h.q.Done(r.ID)
}

func (h *history) postpone(t *rapid.T) {
	r := h.pick(t, true)
	r.claimed, r.Due = false, h.now+rapid.Int64Range(0, 9).Draw(t, "wait")
	h.q.Postpone(r.ID, r.Due)
}

func (h *history) release(t *rapid.T) {
	r := h.pick(t, true)
	r.claimed = false
	h.q.Release(r.ID)
}

func (h *history) gone(t *rapid.T) {
	r := h.pick(t, false)
	h.remove(r)
	h.q.Gone(r.ID)
}

func (h *history) pause(t *rapid.T) {
	h.paused = rapid.SampledFrom([][]string{nil, {"t"}, {"u"}}).Draw(t, "paused")
	h.q.Pause(h.paused)
}

// check compares what the Queue counts with what it holds.
func (h *history) check(t *rapid.T) {
	if h.q.Len() != len(h.rows) {
		t.Fatalf("the queue knows %d messages, not %d", h.q.Len(), len(h.rows))
	}
	idle := 0
	for _, e := range h.q.entries {
		if e.msg != nil && !e.claimed {
			idle += e.msg.Size()
		}
	}
	if idle != h.q.idle {
		t.Fatalf("idle is %d, should be %d", h.q.idle, idle)
	}
}

// finish settles everything, which must be possible from any state.
func (h *history) finish(t *rapid.T) {
	h.paused, h.now = nil, h.now+100
	h.q.Pause(nil)
	for range 500 {
		for _, r := range slices.Clone(h.rows) {
			if r.claimed {
				h.remove(r)
				h.q.Done(r.ID)
			}
		}
		if len(h.rows) == 0 {
			break
		}
		h.claim(t)
	}
	if len(h.rows) > 0 || h.q.Len() > 0 || len(h.q.lists) > 0 || h.q.Claimed() > 0 {
		t.Fatalf("%d messages are stuck, %d lists left", len(h.rows), len(h.q.lists))
	}
}

// What is claimed is allowed, comes ascending for each key, without a gap, and nothing is held back for good.
func TestQueue_AgreesWithAModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := &history{q: New(rapid.IntRange(1, 4).Draw(t, "perKey"), much, much), nextID: 10}
		t.Repeat(map[string]func(*rapid.T){
			"add": h.add, "claim": h.claim, "done": h.done, "postpone": h.postpone, "release": h.release,
			"gone": h.gone, "pause": h.pause, "time": func(*rapid.T) { h.now += 3 },
			"": h.check,
		})
		h.finish(t)
	})
}

func TestQueue_NothingIsClaimedOfAFrozenSlot_AndAllOfItWhenItThaws(t *testing.T) {
	inSlot := func(id int64, slot int, key string) Row {
		r := row(id, key)
		r.Slot = slot
		return r
	}
	q := New(10, much, much)
	q.Add(inSlot(1, 1, "a"))
	q.Add(inSlot(2, 2, "b"))
	q.Add(inSlot(3, 1, ""))
	require.Equal(t, []string{"1"}, ids(q.Claim(0, 1, much)))
	require.Equal(t, 1, q.ClaimedOf(1))
	q.Freeze([]int{1})
	q.Add(inSlot(4, 1, "c"))
	require.Equal(t, []string{"2"}, ids(q.Claim(0, 10, much)))
	q.Release(1)
	require.Zero(t, q.ClaimedOf(1))
	require.Empty(t, q.Claim(0, 10, much), "what was released is frozen, too")
	q.Freeze(nil)
	require.ElementsMatch(t, []string{"1", "3", "4"}, ids(q.Claim(0, 10, much)))
	require.Equal(t, 3, q.ClaimedOf(1))
	q.Done(3)
	require.Equal(t, 2, q.ClaimedOf(1))
	require.Len(t, q.DropSlot(1), 2)
	require.Zero(t, q.ClaimedOf(1))
}
