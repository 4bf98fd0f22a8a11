package scan_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/watermill-outbox/outbox/internal/scan"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// history is one interleaving: the name of a transaction for its next step, or "r" for the relay's.
type history []string

// program is what a transaction does: a key for each publish, then "+" to commit or "-" to roll back.
type program []string

// play runs a history, and then the relay until nothing can be new. It reports a step that was not possible, because
// somebody else had the row lock.
func play(programs map[string]program, h history) (possible bool, err error) {
	db := newDatabase()
	r := newRelay(db, 2, 3)
	var committed []row
	at, txs := map[string]int{}, map[string]*transaction{}
	for _, who := range h {
		if who == "r" {
			r.advance()
			continue
		}
		t := txs[who]
		if t == nil {
			t = db.begin(who)
			txs[who] = t
		}
		switch op := programs[who][at[who]]; op {
		case "+", "-":
			if op == "+" {
				committed = append(committed, t.wrote...)
			}
			db.end(t, op == "+")
		default:
			if !db.lock(t, op) {
				return false, nil
			}
			db.publish(t, op, 0, true)
		}
		at[who]++
	}
	settle(r)
	return true, check(r.published, committed)
}

// settle runs the relay until nothing can be new: a fetch for each two rows, and some for the re-reads.
func settle(r *relay) {
	for r.step != 0 {
		r.advance()
	}
	for range 3 * (len(r.db.rows) + 6) {
		r.advance()
	}
}

// interleavings calls try with every order of the steps of programs and fetches*3 steps of the relay.
func interleavings(programs map[string]program, fetches int, try func(history)) {
	left := map[string]int{"r": 3 * fetches}
	total := 3 * fetches
	for name, p := range programs {
		left[name] = len(p)
		total += len(p)
	}
	names := make([]string, 0, len(left))
	for name := range left {
		names = append(names, name)
	}
	slices.Sort(names)
	h := make(history, 0, total)
	var step func()
	step = func() {
		if len(h) == total {
			try(h)
			return
		}
		for _, name := range names {
			if left[name] > 0 {
				left[name]--
				h = append(h, name)
				step()
				h = h[:len(h)-1]
				left[name]++
			}
		}
	}
	step()
}

func TestReader_LosesAndReordersNothing_InAnyInterleavingOfThreeTransactionsOnTwoKeys(t *testing.T) {
	for _, programs := range []map[string]program{
		{"1": {"a", "+"}, "2": {"a", "+"}, "3": {"b", "+"}},
		{"1": {"a", "+"}, "2": {"a", "-"}, "3": {"a", "+"}},
		{"1": {"a", "+"}, "2": {"a", "b", "+"}, "3": {"b", "+"}},
		{"1": {"a", "-"}, "2": {"b", "+"}, "3": {"b", "+"}},
	} {
		t.Run(fmt.Sprint(programs), func(t *testing.T) {
			count := 0
			interleavings(programs, 2, func(h history) {
				possible, err := play(programs, h)
				if err != nil {
					require.NoError(t, err, strings.Join(h, " "))
				}
				if possible {
					count++
				}
			})
			t.Log(count, "histories")
		})
		if testing.Short() {
			break
		}
	}
}

func TestReader_DoesNotTakeATransactionForOneOfTheSameNameBeforeARestart(t *testing.T) {
	db := newDatabase()
	r := newRelay(db, 9, 9)
	fetch := func() {
		for range 3 {
			r.advance()
		}
	}
	old, other := db.begin("1"), db.begin("2")
	require.True(t, db.lock(old, "a"))
	db.publish(old, "a", 0, true)
	db.publish(other, "b", 0, true)
	db.end(other, true)
	fetch() // passes what old has written
	fetch()
	db.end(old, true)
	db.restart()
	r.reader.Restarted()
	db.publish(db.begin("1"), "c", 0, true) // holds the sequence under old's name
	next := db.begin("2")
	require.True(t, db.lock(next, "a"))
	db.publish(next, "a", 0, true)
	db.end(next, true)
	fetch()
	require.NoError(t, check(r.published, slices.Concat(other.wrote, old.wrote, next.wrote)))
}

func TestReader_AgreesWithAModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) { newWorld(t).run() })
}

// A page of what came late may be cut below rows that catching up has shown; those wait, or they would go before others of
// their key.
func TestFetch_DoesNotCatchUpPastTheCutOfWhatCameLate(t *testing.T) {
	f := (&scan.Reader{}).Begin()
	require.EqualValues(t, 5, f.Through(9, []int64{3, 5}, true))
	require.EqualValues(t, 9, f.Through(9, []int64{3, 5}, false))
	require.EqualValues(t, 4, f.Through(4, []int64{3, 5}, true))
}
