package outbox

import (
	"context"
	"errors"
	"math/bits"
	"math/rand/v2"
	"time"

	"github.com/ThreeDotsLabs/watermill"
)

const (
	// partTimeout bounds the attempt to mark a part of what could not be marked together.
	partTimeout = time.Second
	// partsEvery is after how many attempts to mark a batch whole its parts are tried.
	partsEvery = 3
	// maxRefusal is how often, at the least, it is tried again to mark a message that could not be marked alone.
	maxRefusal = 30 * time.Second
)

// marker tells the store what became of messages. A message that cannot be marked, because somebody has locked its row or
// the database refuses what is to be written, must not keep the others from it: it is tried again by itself, and until
// then its claim holds back its key and nothing else.
type marker struct {
	*relay
	left    []unmarked // could not be marked together
	tries   int        // of these
	passed  bool       // others have been marked since
	refused []unmarked // could not be marked alone
	refusal int        // how often in a row
	next    time.Time  // when to try the left again
	again   time.Time  // and the refused
}

type unmarked struct {
	outcome Outcome
	size    int
}

// mark is the marker's goroutine.
func (r *relay) mark() {
	m := &marker{relay: r}
	for {
		var left, refused <-chan time.Time
		if len(m.left) > 0 {
			left = time.After(time.Until(m.next))
		}
		if len(m.refused) > 0 {
			refused = time.After(time.Until(m.again))
		}
		select {
		case batch, ok := <-r.marks:
			if !ok {
				return
			}
			m.take(batch)
		case <-left:
			m.tryLeft()
		case <-refused:
			m.tryRefused()
		}
	}
}

// take tells the store of a batch, and the loop of what that frees.
func (m *marker) take(batch marks) {
	switch {
	case len(batch.outcomes) == 0: // that says nothing of the others
	case m.settle(batch.outcomes, settleTimeout):
		m.passed = len(m.left) > 0
	default:
		for i, o := range batch.outcomes {
			m.left = append(m.left, unmarked{o, batch.sizes[i]})
			batch.bytes -= batch.sizes[i]
		}
		batch.items -= len(batch.outcomes)
		batch.outcomes = nil
		m.putOff()
	}
	if len(batch.released) > 0 {
		ctx, cancel := m.context(settleTimeout)
		defer cancel()
		if err := m.store.Release(ctx, batch.released...); err != nil {
			m.cfg.Logger.Error("Releasing messages failed", err, watermill.LogFields{"messages": len(batch.released)})
		}
	}
	m.answer(batch)
}

func (m *marker) putOff() {
	m.tries++
	m.next = time.Now().Add(fullJitter(50*time.Millisecond, 5*time.Second, m.tries))
}

func (m *marker) answer(batch marks) {
	select {
	case m.marked <- batch:
	case <-m.giveUp.Done():
	}
}

// context does not end with a stop.
func (m *marker) context(timeout time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(m.workCtx), timeout)
}

// settle tells the store once.
func (m *marker) settle(outcomes []Outcome, timeout time.Duration) bool {
	log := m.cfg.Logger.Error
	if timeout == partTimeout { // one of many attempts
		log = func(msg string, err error, fields watermill.LogFields) {
			m.cfg.Logger.Debug(msg, fields.Add(watermill.LogFields{"err": err}))
		}
	}
	ctx, cancel := m.context(timeout)
	defer cancel()
	err := m.store.Settle(ctx, outcomes...)
	switch {
	case errors.Is(err, ErrNotClaimed): // the others are settled
		m.cfg.Logger.Debug("Some of the marked messages were not claimed any more", watermill.LogFields{"err": err})
	case err != nil:
		log("Marking messages failed, will be tried again", err, watermill.LogFields{
			"messages": len(outcomes), "first_outbox_id": outcomes[0].ID,
		})
		return errors.Is(err, ErrClosed)
	}
	return true
}

// settled settles some of the unmarked, and frees them.
func (m *marker) settled(some []unmarked, timeout time.Duration) bool {
	batch := marks{items: len(some), late: true}
	for _, u := range some {
		batch.outcomes = append(batch.outcomes, u.outcome)
		batch.bytes += u.size
	}
	if !m.settle(batch.outcomes, timeout) {
		return false
	}
	m.answer(batch)
	return true
}

func (m *marker) tryLeft() {
	left, timeout := m.left, settleTimeout
	if m.passed {
		timeout = partTimeout
	}
	if m.settled(left, timeout) {
		m.left, m.tries, m.passed = nil, 0, false
		return
	}
	rand.Shuffle(len(left), func(i, j int) { left[i], left[j] = left[j], left[i] }) //nolint:gosec // guards nothing
	failed := left
	if m.passed || (m.tries%partsEvery == 0 && !m.claimsFail.Load()) { // else it is the database that is not there
		failed = m.parts(left)
	}
	if len(failed) == len(left) && !m.passed { // nothing can be marked, it seems
		m.left = failed
		m.putOff()
		return
	}
	m.left, m.tries, m.passed = nil, 0, false
	for _, u := range failed {
		m.cfg.Logger.Error("A message cannot be marked, and its key waits; is its row locked?", nil,
			watermill.LogFields{"outbox_id": u.outcome.ID, "status": u.outcome.Status})
	}
	m.refused, m.refusal = append(m.refused, failed...), 0
	m.again = time.Now().Add(partTimeout)
}

// parts settles halves, halves of halves and so on, and returns what cannot be settled alone. When too many attempts in a
// row have failed, nothing can be settled now. (A few bad ones at the beginning look like that, too: the order is another
// the next time.)
func (m *marker) parts(all []unmarked) (failed []unmarked) {
	failures, most := 0, 2*bits.Len(uint(len(all)))
	var try func(part []unmarked)
	try = func(part []unmarked) {
		switch {
		case m.giveUp.Err() != nil || failures >= most:
			failed = append(failed, part...)
		case m.settled(part, partTimeout):
			failures = 0
		case len(part) == 1:
			failures++
			failed = append(failed, part...)
		default:
			failures++
			try(part[:len(part)/2])
			try(part[len(part)/2:])
		}
	}
	if len(all) == 1 {
		return all
	}
	try(all[:len(all)/2])
	try(all[len(all)/2:])
	return failed
}

// tryRefused tries one of them, so that the others do not wait for long.
func (m *marker) tryRefused() {
	first := m.refused[0]
	m.refused = m.refused[1:]
	if m.settled([]unmarked{first}, partTimeout) {
		m.refusal, m.again = 0, time.Time{}
		return
	}
	m.refused = append(m.refused, first)
	m.refusal++
	m.again = time.Now().Add(min(partTimeout<<min(m.refusal, 10), maxRefusal))
}
