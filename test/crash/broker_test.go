package crash_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/ThreeDotsLabs/watermill/message"
)

// broker is a message.Publisher whose messages are the lines of a file. Each is one write, so none is torn.
type broker struct {
	job

	trap *trap
	file *os.File
	all  chan struct{} // closed when as many messages have been answered as are due

	mu       sync.Mutex
	answered map[string]bool
	held     bool
	failures int  // of the message that fails
	relented bool // it fails no more
}

func (j job) brokerFile() string { return filepath.Join(j.Folder, "broker-"+j.Run+".log") }

func (j job) openBroker(t *trap) (*broker, error) {
	file, err := os.OpenFile(j.brokerFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	return &broker{job: j, trap: t, file: file, all: make(chan struct{}), answered: map[string]bool{}}, err
}

var (
	errUnavailable = errors.New("the broker is not available")
	errRefused     = errors.New("the broker refuses this message")
)

// Publish refuses one message for good. Another fails until that is held against it, which the relay writes down: it does so
// when it has seen one get through that it had sent in between.
func (b *broker) Publish(_ string, msgs ...*message.Message) error {
	for _, msg := range msgs {
		if err := b.answer(msg.UUID); err != nil {
			return err
		}
		b.trap.at("before Publish")
		if _, err := fmt.Fprintln(b.file, msg.UUID); err != nil {
			return err
		}
		b.trap.at("after Publish")
		b.mu.Lock()
		b.count(msg.UUID)
		b.mu.Unlock()
	}
	return nil
}

// maxFailures ends the failures where nothing is left that could get through in between.
const maxFailures = 10

// relent is called when a failure was held against the message that fails.
func (b *broker) relent() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.relented = true
}

// answer decides what becomes of a message.
func (b *broker) answer(uuid string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	name := strings.TrimPrefix(uuid, b.Run)
	switch {
	case name == refused:
		b.count(uuid)
		return errRefused
	case b.trap == nil: // the test's own broker has no other whims
	case b.Hold && !b.held:
		b.held = true
		b.mu.Unlock()
		select {} // until the crash
	case name == failing && !b.relented:
		b.failures++
		b.relented = b.failures == maxFailures
		return errUnavailable
	}
	return nil
}

// count closes all when everything has been answered. The caller holds mu.
func (b *broker) count(uuid string) {
	if b.answered[uuid] {
		return
	}
	if b.answered[uuid] = true; len(b.answered) == b.Due {
		close(b.all)
	}
}

func (b *broker) Close() error { return b.file.Close() }

// published returns the ids of the messages in the broker, in order.
func (j job) published() ([]string, error) {
	text, err := os.ReadFile(j.brokerFile())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return strings.Fields(string(text)), err
}
