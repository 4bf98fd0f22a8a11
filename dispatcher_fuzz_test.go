package outbox

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"
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
	f.Fuzz(func(t *testing.T, input []byte) { play(t, draws(input)) })
}

// draws makes the draws of a whole history from an input of any length: its first eight bytes are a seed, and the others
// take the place of the first that come of it.
func draws(input []byte) []byte {
	var seed [32]byte
	input = input[copy(seed[:8], input):]
	all := make([]byte, 64<<10)
	random := rand.NewChaCha8(seed)
	for at := 0; at < len(all); at += 8 {
		binary.LittleEndian.PutUint64(all[at:], random.Uint64())
	}
	copy(all, input)
	return all
}
