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
	Zipf    Keys = "zipf"    // 10,000 keys, the k-th as often as log(1+1/k)/log(10,000): the first has 7.5 % of all messages
	One     Keys = "one"     // one key
)

// Shape is what messages are like.
type Shape struct {
	Size int // of a payload, in bytes; from 40 to 100,000
	Keys Keys
}

// Backlog is a number of messages that are committed before a relay starts.
type Backlog struct {
	Shape

	N int
}

const keys = 10_000

// Message returns the n-th message, from 0.
func (s Shape) Message(n int) Message {
	return Message{UUID: watermill.NewUUID(), Key: s.key(n), Payload: s.payload(n)}
}

// golden is what multiples of are spread as evenly over the fractions as can be, in an order that looks like none.
const golden = 0.618033988749895

func (s Shape) key(n int) string {
	switch s.Keys {
	case Zipf:
		_, fraction := math.Modf(float64(n) * golden)
		n = int(math.Pow(keys, fraction))
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
		return fmt.Sprintf("'order-' || floor(power(%d::float8, i * %v::float8 - floor(i * %[2]v::float8)))::int", keys, golden)
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
	maxSize     = 100_000
)

// noise fills payloads: letters and digits that neither PostgreSQL nor anybody else can make much shorter.
var noise = func() string {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
	rng := rand.New(rand.NewPCG(1, 1)) //nolint:gosec // it is no secret
	text := make([]byte, maxSize)
	for i := range text {
		text[i] = letters[rng.IntN(len(letters))]
	}
	return string(text)
}()

func (s Shape) payload(n int) []byte {
	var b bytes.Buffer
	b.Grow(s.Size)
	fmt.Fprintf(&b, "%s%0*d%s", payloadHead, digits, n, payloadRest)
	b.WriteString(noise[:max(s.Size-minSize, 0)])
	b.WriteString(payloadEnd)
	return b.Bytes()
}

// payloadSQL is the same of the integer i, as text.
func (s Shape) payloadSQL() string {
	return fmt.Sprintf(`'%s' || lpad(i::text, %d, '0') || '%s' || '%s' || '%s'`,
		payloadHead, digits, payloadRest, noise[:max(s.Size-minSize, 0)], payloadEnd)
}

// NumberOf returns which message has this payload.
func NumberOf(payload []byte) (int, error) {
	digitsOf, ok := bytes.CutPrefix(payload, []byte(payloadHead))
	if !ok || len(digitsOf) < digits {
		return 0, fmt.Errorf("%.40q is not the payload of a benchmark's message", payload)
	}
	return strconv.Atoi(string(digitsOf[:digits]))
}
