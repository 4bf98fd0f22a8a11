package scan_test

import (
	"flag"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// author writes a random history while it is played: transactions that come and go, one relay or two that take slots from
// each other, and servers that crash and fail over.
type author struct {
	t       *rapid.T
	w       *world
	history []string
	two     bool
	begun   int
}

// acts are what an author does next, one as likely as the other. There is a power of two of them.
var acts = []string{
	"begin", "begin", "begin", "begin", "begin", "publish", "publish", "publish", "publish", "publish", "publish",
	"publish many", "~", "+", "+", "+", "-", "p", "r", "r", "r", "r", "r", "r", "f", "f", "f", "mark", "lose", "gain",
	"back", "server",
}

func (a *author) write() {
	a.two = a.oneIn(2, "two relays")
	for _, second := range []bool{false, true} {
		a.tell(second, fmt.Sprint("limit", rapid.IntRange(1, 6).Draw(a.t, "limit")))
		a.tell(second, fmt.Sprint("budget", rapid.IntRange(1, 8).Draw(a.t, "budget")))
		if a.oneIn(2, "keeps") {
			a.tell(second, "keep")
		}
	}
	for range 32 + a.below(128, "acts") {
		if a.act(acts[a.below(len(acts), "act")], a.two && a.oneIn(2, "second")); a.w.broker.err != nil {
			break
		}
	}
	if err := a.w.finish(); err != nil {
		a.t.Fatalf("%v, after: %s", err, strings.Join(a.history, " "))
	}
}

func (a *author) act(act string, second bool) {
	switch act {
	case "begin":
		if len(a.w.db.txs) < 6 {
			a.begun++
			a.do(fmt.Sprint(a.begun, a.key()))
		}
	case "publish", "publish many", "~", "+", "-", "p":
		if len(a.w.db.txs) > 0 {
			a.transact(act)
		}
	case "r", "f":
		if a.relay(second).step == begin {
			a.tell(second, []string{"list", "last"}[a.below(2, "order")])
			a.maybe(4, second, "look")
			a.maybe(8, second, "cold")
		}
		a.maybe(8, second, "refuse")
		a.tell(second, act)
	case "lose", "gain":
		a.tell(second, fmt.Sprint(act, a.below(2, "slot")))
	case "back":
		if a.oneIn(2, "goes back") {
			a.tell(second, fmt.Sprint("back", a.id("to")))
		}
	case "server":
		switch a.below(16, "event") {
		case 15:
			a.do(fmt.Sprint("failover", a.id("through"), ",", a.id("undeleted")))
		case 14, 13:
			a.do(fmt.Sprint("crash", a.id("next")+3))
		}
	default:
		a.tell(second, act)
	}
}

func (a *author) transact(act string) {
	t := a.w.db.txs[rapid.IntRange(0, len(a.w.db.txs)-1).Draw(a.t, "transaction")]
	times := 1
	switch act {
	case "publish many":
		times = 6
		fallthrough
	case "publish":
		act = a.key()
	}
	for name, of := range a.w.txs {
		for ; of == t && times > 0; times-- {
			a.do(name + act)
		}
	}
}

// do makes a step, if it is possible.
func (a *author) do(step string) {
	if a.w.do(step) {
		a.history = append(a.history, step)
	}
}

// tell is do for a relay.
func (a *author) tell(second bool, step string) {
	if second {
		step = strings.ToUpper(step)
	}
	a.do(step)
}

func (a *author) relay(second bool) *relay {
	if second {
		return a.w.relays[1]
	}
	return a.w.relays[0]
}

func (a *author) maybe(n int, second bool, step string) {
	if a.oneIn(n, step) {
		a.tell(second, step)
	}
}

func (a *author) oneIn(n int, label string) bool { return a.below(n, label) == n-1 }

// below draws from [0, n), without rapid's preference for small numbers. n is a power of two.
func (a *author) below(n int, label string) (drawn int) {
	for ; n > 1; n /= 2 {
		drawn *= 2
		if rapid.Bool().Draw(a.t, label) {
			drawn++
		}
	}
	return drawn
}

func (a *author) key() string { return string(rune('a' + a.below(keys, "key"))) }

// id draws one that was taken, or the one before or after.
func (a *author) id(label string) int64 { return rapid.Int64Range(0, a.w.db.next).Draw(a.t, label) }

// What comes out as a failure is a history to be played.
func TestReader_LosesAndReordersNothing_InRandomHistories(t *testing.T) {
	checks := flag.Lookup("rapid.checks")
	defer func(before string) { require.NoError(t, checks.Value.Set(before)) }(checks.Value.String())
	switch {
	case checks.Value.String() != checks.DefValue: // it was asked for
	case testing.Short(): // rapid makes a fifth of it
		require.NoError(t, checks.Value.Set("5000"))
	default:
		require.NoError(t, checks.Value.Set("10000"))
	}
	rapid.Check(t, func(t *rapid.T) { (&author{t: t, w: newWorld()}).write() })
}
