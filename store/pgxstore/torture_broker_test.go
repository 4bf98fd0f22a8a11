package pgxstore_test

import (
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// landing is a message in the broker.
type landing struct {
	uuid string
	by   *relay
	at   time.Time
	// claimed is when the relay had claimed it.
	claimed time.Time
	// failed is set where the relay was told that it had not landed.
	failed bool
}

// broker keeps all that has reached it, in order.
type broker struct {
	mu       sync.Mutex
	landings []landing
	first    map[string]struct{} // the uuids of landings
	landed   chan struct{}       // of one, after a landing
}

func newBroker() *broker {
	return &broker{first: map[string]struct{}{}, landed: make(chan struct{}, 1)}
}

// missing returns those of uuids that have not landed.
func (b *broker) missing(uuids []string) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var missing []string
	for _, uuid := range uuids {
		if _, ok := b.first[uuid]; !ok {
			missing = append(missing, uuid)
		}
	}
	return missing
}

// link is the way of one relay to the broker: a publisher that fails and panics now and then, also after the message has
// landed.
type link struct {
	broker *broker
	relay  *relay

	mu     sync.Mutex
	random *rand.Rand
	// state says how the relay fares; calls that were under way when it changed go by it, too.
	state    linkState
	changed  chan struct{} // closed when state changes
	cutAt    time.Time     // when the relay lost its database, or zero
	overtime int           // calls that began long after its leases had ended
}

type linkState int

const (
	up   linkState = iota
	slow           // publishing takes its time
	dead           // the relay does not exist any more
)

func (l *link) become(state linkState) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state = state
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *link) cut(at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cutAt = at
}

var (
	errDead    = errors.New("the process does not exist any more")
	errRefused = errors.New("the broker has refused")
	errUnclear = errors.New("the broker's answer was lost")
)

func (l *link) Close() error { return nil }

func (l *link) Publish(_ string, msgs ...*message.Message) error {
	claimed := l.relay.claimedAt(msgs[0].UUID) // now: it may be claimed anew before this call returns
	fate, wait, changed := l.begin()
	select {
	case <-wait:
	case <-changed: // what hangs when the relay is killed hangs on, or is no more
		time.Sleep(l.hang())
	}
	switch {
	case fate < 10:
		return errRefused
	case fate < 15:
		panic("the publisher panics")
	}
	unclear := fate < 20
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state == dead {
		return errDead
	}
	b := l.broker
	b.mu.Lock()
	for _, msg := range msgs {
		b.landings = append(b.landings, landing{msg.UUID, l.relay, time.Now(), claimed, unclear})
		b.first[msg.UUID] = struct{}{}
	}
	b.mu.Unlock()
	select {
	case b.landed <- struct{}{}:
	default:
	}
	if unclear {
		return errUnclear
	}
	return nil
}

// begin decides what becomes of a call: its fate, in thousandths, and how long it takes.
func (l *link) begin() (fate int, wait <-chan time.Time, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	d := time.Duration(0)
	switch {
	case l.state == slow:
		d = time.Duration(l.random.Int64N(int64(4 * tortureTTL)))
		if !l.cutAt.IsZero() && time.Since(l.cutAt) > 2*tortureTTL {
			l.overtime++
		}
	case l.random.IntN(50) == 0: // the rest of its key queues up
		d = time.Duration(l.random.Int64N(int64(200 * time.Millisecond)))
	case l.random.IntN(4) == 0:
		d = time.Duration(l.random.Int64N(int64(2 * time.Millisecond)))
	}
	return l.random.IntN(1000), time.After(d), l.changed
}

// hang is how much longer a call takes that was under way when the relay was cut off.
func (l *link) hang() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state != slow {
		return 0
	}
	return time.Duration(l.random.Int64N(int64(4 * tortureTTL)))
}
