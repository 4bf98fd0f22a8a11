package peer

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"

	"github.com/ThreeDotsLabs/watermill"
)

// Keys is how keys are spread over messages.
type Keys string

// The first is what scenarios have unless they are about keys.
const (
	Uniform Keys = "uniform" // 10,000 keys, each as often
	Zipf    Keys = "zipf"    // 10,000 keys, the k-th as often as 1/k: the first has a tenth of all messages
	One     Keys = "one"     // one key
)

// Shape is what messages are like.
type Shape struct {
	Size int // of a payload, in bytes; at least 40
	Keys Keys
}

// Backlog is a number of messages that are committed before a relay starts.
type Backlog struct {
	Shape

	N int
}

const keys = 10_000

// Message returns the n-th message, from 0; rng is for keys that are drawn.
func (s Shape) Message(n int, rng *rand.Rand) Message {
	return Message{UUID: watermill.NewUUID(), Key: s.key(n, rng), Payload: s.payload(n)}
}

func (s Shape) key(n int, rng *rand.Rand) string {
	switch s.Keys {
	case Zipf:
		n = int(math.Pow(keys, rng.Float64())) // its k-th value has a share of log(1+1/k)/log(keys)
	case One:
		n = 0
	case Uniform:
		n %= keys
	}
	return "order-" + strconv.Itoa(n)
}

// keySQL is the same of the integer i.
func (s Shape) keySQL() string {
	switch s.Keys {
	case Zipf:
		return fmt.Sprintf("'order-' || floor(power(%d, random()))::int", keys)
	case One:
		return "'order-0'"
	case Uniform:
	}
	return fmt.Sprintf("'order-' || (i %% %d)", keys)
}

const (
	payloadHead = `{"n":"`
	payloadRest = `","note":"`
	payloadEnd  = `"}`
	digits      = 10
	minSize     = len(payloadHead) + digits + len(payloadRest) + len(payloadEnd)
)

func (s Shape) payload(n int) []byte {
	var b bytes.Buffer
	b.Grow(s.Size)
	fmt.Fprintf(&b, "%s%0*d%s", payloadHead, digits, n, payloadRest)
	b.Write(bytes.Repeat([]byte{'x'}, max(s.Size-minSize, 0)))
	b.WriteString(payloadEnd)
	return b.Bytes()
}

// payloadSQL is the same of the integer i, as text.
func (s Shape) payloadSQL() string {
	return fmt.Sprintf(`'%s' || lpad(i::text, %d, '0') || '%s' || repeat('x', %d) || '%s'`,
		payloadHead, digits, payloadRest, max(s.Size-minSize, 0), payloadEnd)
}

// NumberOf returns which message has this payload.
func NumberOf(payload []byte) (int, error) {
	digitsOf, ok := bytes.CutPrefix(payload, []byte(payloadHead))
	if !ok || len(digitsOf) < digits {
		return 0, fmt.Errorf("%.40q is not the payload of a benchmark's message", payload)
	}
	return strconv.Atoi(string(digitsOf[:digits]))
}
