package outbox

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/watermill-outbox/outbox/internal/draws"
)

// Whatever the broker, the store and the lease do, the invariants of dispatcherHistory hold.
func FuzzDispatcher(f *testing.F) {
	for seed := range byte(255) { // a history is short, and what is wrong may take many
		f.Add([]byte{seed})
	}
	play := rapid.MakeFuzz(func(t *rapid.T) {
		rapid.SyncTest(t, func(t *rapid.T) {
			h := newDispatcherHistory(t)
			t.Repeat(map[string]func(*rapid.T){
				"begin": h.begin, "commit": h.commit, "claim": h.claim, "send": h.send, "call": h.call, "answer": h.answer,
				"return": h.returns, "mark": h.mark, "settle": h.settle, "time": h.time, "lease": h.lease,
				"other": h.other, "restart": h.restart, "outage": h.outage, "round": h.round, "": h.check,
			})
			h.finish(t)
		})
	})
	f.Fuzz(func(t *testing.T, input []byte) { play(t, draws.From(input)) })
}
