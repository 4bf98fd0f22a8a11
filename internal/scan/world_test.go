package scan_test

import (
	"errors"
	"fmt"

	"pgregory.net/rapid"
)

// world is a random history: transactions that come and go, a relay that acquires the slots in two parts, and a server
// that restarts.
type world struct {
	t         *rapid.T
	db        *database
	relay     *relay
	active    []*transaction
	committed []row
	names     int
	slots     map[int]bool
}

var keys = []string{"a", "b", "c"}

func newWorld(t *rapid.T) *world {
	db := newDatabase()
	w := &world{t: t, db: db, slots: map[int]bool{0: true}}
	w.relay = newRelay(db, rapid.IntRange(1, 6).Draw(t, "limit"), rapid.IntRange(1, 8).Draw(t, "budget"))
	w.relay.keep = rapid.Bool().Draw(t, "marks of their own")
	w.relay.owns = func(slot int) bool { return w.slots[slot] }
	return w
}

func (w *world) run() {
	for range rapid.IntRange(10, 120).Draw(w.t, "steps") {
		w.act(rapid.SampledFrom([]string{
			"begin", "publish", "publish", "publish many", "commit", "commit", "roll back", "savepoint", "prepare",
			"relay", "relay", "relay", "relay", "relay", "mark", "acquire", "restart", "back",
		}).Draw(w.t, "action"))
	}
	for len(w.active) > 0 {
		w.end(rapid.Bool().Draw(w.t, "commit"))
	}
	settle(w.relay)
	if !w.slots[1] {
		w.slots[1] = true
		w.relay.reader.Acquired(1)
	}
	settle(w.relay)
	if err := errors.Join(w.relay.missed, check(w.relay.published, w.committed)); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) act(action string) {
	switch action {
	case "begin":
		if len(w.active) < 5 {
			w.names++
			w.active = append(w.active, w.db.begin(fmt.Sprint(w.names)))
		}
	case "publish", "publish many", "savepoint":
		if t := w.pick(false); t != nil {
			key := rapid.IntRange(0, len(keys)-1).Draw(w.t, "key")
			if w.db.lock(t, keys[key]) {
				for range map[string]int{"publish": 1, "publish many": 6, "savepoint": 1}[action] {
					w.db.publish(t, keys[key], key%2, action != "savepoint")
				}
			}
		}
	case "commit", "roll back":
		w.end(action == "commit")
	case "prepare":
		if t := w.pick(false); t != nil {
			t.prepared = true
		}
	case "relay":
		w.relay.advance()
	case "mark":
		w.relay.mark()
	case "acquire":
		if !w.slots[1] && w.relay.step == 0 && rapid.IntRange(0, 2).Draw(w.t, "acquire") == 0 {
			w.slots[1] = true
			w.relay.reader.Acquired(1)
		}
	case "restart":
		if w.relay.step == 0 && rapid.IntRange(0, 2).Draw(w.t, "restart") == 0 {
			w.restart()
		}
	case "back":
		if w.relay.step == 0 && rapid.IntRange(0, 9).Draw(w.t, "back") == 0 {
			w.relay.reader.Back(rapid.Int64Range(0, w.db.next).Draw(w.t, "to"))
		}
	}
}

// pick returns a transaction that is running.
func (w *world) pick(orPrepared bool) *transaction {
	if len(w.active) == 0 {
		return nil
	}
	t := w.active[rapid.IntRange(0, len(w.active)-1).Draw(w.t, "transaction")]
	if t.prepared && !orPrepared {
		return nil
	}
	return t
}

func (w *world) end(commit bool) {
	t := w.pick(true)
	if t == nil {
		return
	}
	if commit {
		w.committed = append(w.committed, t.wrote...)
	}
	w.db.end(t, commit)
	w.forgetEnded()
}

// restart ends all but what is prepared. Names of transactions start again.
func (w *world) restart() {
	w.db.restart()
	w.forgetEnded()
	w.names = 0
	w.relay.reader.Restarted()
}

func (w *world) forgetEnded() {
	kept := w.active[:0]
	for _, t := range w.active {
		if !t.ended {
			kept = append(kept, t)
		}
	}
	w.active = kept
}
