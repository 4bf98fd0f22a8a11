// Package draws lets a fuzzer steer property tests of rapid whose histories need more draws than an input of a fuzzer has.
package draws

import (
	"encoding/binary"
	"math/rand/v2"
)

// size is enough for the longest history there is.
const size = 64 << 10

// From makes the draws of a whole history from an input of any length: its first eight bytes are a seed, and the others
// take the place of the first that come of it.
func From(input []byte) []byte {
	var seed [32]byte
	input = input[copy(seed[:8], input):]
	all := make([]byte, size)
	random := rand.NewChaCha8(seed)
	for at := 0; at < len(all); at += 8 {
		binary.LittleEndian.PutUint64(all[at:], random.Uint64())
	}
	copy(all, input)
	return all
}
