package history

import (
	"bytes"
	"fmt"
)

// payloadSize is about that of a small event.
const payloadSize = 200

// Payload returns what a message of this ID has in it, by which whoever reads it can tell that it is whole.
func Payload(id string) []byte {
	line := append([]byte(id), '\n')
	return bytes.Repeat(line, payloadSize/len(line)+1)
}

// Difference returns what of a message in the broker is not as it was sent, with [Payload] in it: nothing, mostly.
func (m Message) Difference(topic, key string, payload []byte) string {
	switch {
	case topic != m.Topic:
		return fmt.Sprintf("it was sent to topic %q", m.Topic)
	case key != m.Key:
		return fmt.Sprintf("its key was %q, and is %q", m.Key, key)
	case !bytes.Equal(payload, Payload(m.ID)):
		return fmt.Sprintf("its payload is %q", payload)
	}
	return ""
}
