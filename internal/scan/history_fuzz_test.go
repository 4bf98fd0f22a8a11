package scan_test

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"
)

// Nothing is lost and nothing changes its place. What comes out as a failure is a history to be played.
func FuzzReader(f *testing.F) {
	for seed := range byte(16) {
		f.Add([]byte{seed})
	}
	play := rapid.MakeFuzz(func(t *rapid.T) { (&author{t: t, w: newWorld()}).write() })
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
