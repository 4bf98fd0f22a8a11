// Package draws lets a fuzzer steer property tests of rapid whose histories need more draws than an input of a fuzzer has.
package draws

import (
	"crypto/subtle"
	"encoding/binary"
	"math/rand/v2"
)

// size is enough for the longest history there is.
const size = 64 << 10

// From makes the draws of a whole history from an input of any length: its first eight bytes are a seed, and the others
// change the first that come of it. They do not take their place: a fuzzer likes to repeat a byte a thousand times, and
// rapid gives up on a history whose next hundred actions are the same one that is not possible.
func From(input []byte) []byte {
	var seed [32]byte
	input = input[copy(seed[:8], input):]
	all := make([]byte, size)
	random := rand.NewChaCha8(seed)
	for at := 0; at < len(all); at += 8 {
		binary.LittleEndian.PutUint64(all[at:], random.Uint64())
	}
	subtle.XORBytes(all, all, input)
	return all
}
