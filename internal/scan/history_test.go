package scan_test

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// world is what a history is played in, step by step:
//
//	1a 1~      transaction 1 publishes with the key a, which it locks; takes an id in a savepoint that is rolled back
//	1p 1+ 1-   it prepares, commits, rolls back
//	r f f2     the relay makes a step of a fetch; all to its end; and those of another
//	cold look  its next fetch reads nothing new; looks at the server without need
//	list last  from now on it sees the list of holders before the last value of the sequence, or after
//	refuse     the broker refuses the next message
//	keep mark  it marks what it publishes when told to, and not at once; that is now
//	limit2 budget3   what it reads at most
//	lose0 gain0 loseall   it loses or gains a slot
//	back4      it reads on from behind 4
//	crash4     the server crashes, and the next id is 4, or the lowest that may be
//	failover4,2   a replica takes over that has what is up to 4, and of that from 2 on has seen nothing deleted
//
// A second relay is told in capitals.
type world struct {
	db     *database
	broker *broker
	relays []*relay
	txs    map[string]*transaction
}

func newWorld() *world {
	w := &world{db: newDatabase(), broker: newBroker(), txs: map[string]*transaction{}}
	w.relays = []*relay{newRelay(w.db, w.broker)}
	w.relays[0].gain(0, 1)
	return w
}

// do makes a step, and returns false where that is not possible.
func (w *world) do(step string) bool {
	name, op, number := parse(step)
	if name != "" {
		return w.transact(name, op)
	}
	n, m, _ := strings.Cut(number, ",")
	first, _ := strconv.Atoi(n)
	second, _ := strconv.Atoi(m)
	switch {
	case op == "crash":
		w.db.crash(int64(first))
	case op == "failover":
		w.db.failOver(int64(first), int64(second))
		w.broker.reset()
	case op[0] >= 'a':
		return w.tell(w.relays[0], op, first)
	default:
		if len(w.relays) == 1 {
			w.relays = append(w.relays, newRelay(w.db, w.broker))
		}
		return w.tell(w.relays[1], strings.ToLower(op), first)
	}
	return true
}

// parse splits a step into the numbers before, what is to be done, and the numbers after.
func parse(step string) (name, op, number string) {
	from, to := 0, len(step)
	for from < to && step[from] >= '0' && step[from] <= '9' {
		from++
	}
	for to > from && step[to-1] >= ',' && step[to-1] <= '9' && from == 0 {
		to--
	}
	return step[:from], step[from:to], step[to:]
}

func (w *world) transact(name, op string) bool {
	t := w.txs[name]
	if t == nil {
		t = w.db.begin()
		w.txs[name] = t
	}
	switch {
	case t.ended, t.prepared && op != "+" && op != "-":
		return false
	case op == "+", op == "-":
		w.db.end(t, op == "+")
	case op == "p":
		w.db.prepare(t)
	case op == "~":
		w.db.waste(t)
	case w.db.lock(t, int(op[0]-'a')):
		w.db.publish(t, int(op[0]-'a'))
	default:
		return false
	}
	return true
}

func (w *world) tell(r *relay, verb string, n int) bool {
	switch verb {
	case "r":
		for range max(n, 1) {
			r.advance()
		}
	case "f":
		for range max(n, 1) {
			for r.advance(); r.step != begin; {
				r.advance()
			}
		}
	case "refuse":
		r.refusals++
	case "keep":
		r.keeps = true
	case "mark":
		r.mark()
	case "limit":
		r.limit = n
	case "budget":
		r.budget = n
	case "lose":
		r.lose(n)
	case "loseall":
		r.lose(0)
		r.lose(1)
	default:
		return r.step == begin && w.tellBetweenFetches(r, verb, n)
	}
	return true
}

func (w *world) tellBetweenFetches(r *relay, verb string, n int) bool {
	switch verb {
	case "cold":
		r.cold = true
	case "look":
		r.looks = true
	case "list", "last":
		r.listFirst = verb == "list"
	case "back":
		r.back(int64(n))
	case "gain":
		if slices.ContainsFunc(w.relays, func(r *relay) bool { return r.slots[n] }) {
			return false
		}
		r.gain(n)
	default:
		panic(verb)
	}
	return true
}

// finish commits what still runs, has the relays read all there is, in slots that are free, too, and tells what is wrong.
func (w *world) finish() error {
	for len(w.db.txs) > 0 {
		w.db.end(w.db.txs[0], true)
	}
	w.settle()
	for slot := range 2 {
		w.tellBetweenFetches(w.relays[0], "gain", slot)
	}
	w.settle()
	return w.broker.check(w.db)
}

// settle has the relays read and publish until nothing is left. That is bounded.
func (w *world) settle() {
	for _, r := range w.relays {
		for rounds := 4 * (len(w.db.rows) + 8); !r.isDone(); rounds-- {
			if rounds == 0 {
				w.broker.failf("the relay reads on for ever")
				return
			}
			r.refusals, r.cold, r.looks = 0, false, r.epoch != w.db.epoch
			w.tell(r, "f", 0)
			r.mark()
		}
	}
}

func (r *relay) isDone() bool {
	f := r.reader.Begin()
	above := len(r.db.rows) > 0 && r.db.rows[len(r.db.rows)-1].id > f.After
	return r.step == begin && f.Quiet() && !above && f.CatchUp.From > f.CatchUp.To && r.queue.Len() == 0 &&
		len(r.unmarked) == 0 && r.epoch == r.db.epoch
}

// mustf makes steps, all of which are possible.
func (w *world) mustf(t *testing.T, format string, args ...any) {
	t.Helper()
	for step := range strings.FieldsSeq(fmt.Sprintf(format, args...)) {
		require.True(t, w.do(step), step)
		require.NoError(t, w.broker.err, step)
	}
}

// play plays a history in which nothing may be lost, come out of order, or be read again without need.
func play(t *testing.T, history string) {
	t.Helper()
	w := newWorld()
	w.mustf(t, "%s", history)
	require.NoError(t, w.finish())
}
