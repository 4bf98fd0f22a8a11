package scan_test

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/watermill-outbox/outbox/internal/draws"
)

// Nothing is lost and nothing changes its place. What comes out as a failure is a history to be played.
func FuzzReader(f *testing.F) {
	for seed := range byte(255) {
		f.Add([]byte{seed})
	}
	play := rapid.MakeFuzz(func(t *rapid.T) { (&author{t: t, w: newWorld()}).write() })
	f.Fuzz(func(t *testing.T, input []byte) { play(t, draws.From(input)) })
}
