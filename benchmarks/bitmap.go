package main

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"os"
	"sync/atomic"
)

// bitmap tells which messages of a backlog were published. It is safe for concurrent use.
type bitmap []atomic.Uint64

const wordBits = 64

func newBitmap(n int) bitmap { return make(bitmap, (n+wordBits-1)/wordBits) }

// set adds a message. One that is not of the backlog is not there to be found.
func (b bitmap) set(n int) {
	if n >= 0 && n/wordBits < len(b) {
		b[n/wordBits].Or(1 << (n % wordBits))
	}
}

func (b bitmap) count() (n int) {
	for i := range b {
		n += bits.OnesCount64(b[i].Load())
	}
	return n
}

func (b bitmap) write(file string) error {
	data := make([]byte, 0, 8*len(b))
	for i := range b {
		data = binary.LittleEndian.AppendUint64(data, b[i].Load())
	}
	return os.WriteFile(file, data, 0o600)
}

// read adds what was written to a file.
func (b bitmap) read(file string) error {
	data, err := os.ReadFile(file) //nolint:gosec // of this program
	if err != nil {
		return err
	}
	if len(data) != 8*len(b) {
		return fmt.Errorf("%s has %d bytes for %d words", file, len(data), len(b))
	}
	for i := range b {
		b[i].Or(binary.LittleEndian.Uint64(data[8*i:]))
	}
	return nil
}
