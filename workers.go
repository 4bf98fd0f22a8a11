package outbox

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ThreeDotsLabs/watermill"
)

// The goroutines of a relay beside its loop. None of them owns anything but what it has been sent.

// fetch is the fetcher.
func (r *relay) fetch() {
	for g := range r.grants {
		for last := false; !last; {
			begun, n := time.Now(), min(g.limit, r.cfg.BatchSize)
			var term int64
			if r.terms != nil {
				term, _ = r.terms.LeaseTerm() // before the claim: what is lost meanwhile ends it
			}
			msgs, err := r.store.Claim(r.fetchCtx, n, g.bytes)
			if len(msgs) > 0 && r.f.observing {
				r.f.observe(ClaimedEvent{Messages: slices.Clone(msgs), Duration: time.Since(begun)}) // they change hands
			}
			g.limit -= n
			for i := range msgs {
				g.bytes -= msgs[i].Size()
			}
			last = err != nil || len(msgs) < n || g.limit <= 0 || g.bytes <= 0
			r.claims <- claimed{msgs: msgs, full: len(msgs) == n, last: last, idle: g.idle, err: err, term: term} // there is room
			g.idle = false
		}
	}
}

func (r *relay) work() {
	for it := range r.jobs {
		if !r.workOn(it) {
			return // another worker has taken this one's place
		}
	}
}

// workOn publishes one message. Its result is sent even if the publisher ends the goroutine, as a test's fake does that
// calls t.FailNow.
func (r *relay) workOn(it *item) (goesOn bool) {
	err, returned := errGoexit, false
	defer func() {
		goesOn = it.phase.CompareAndSwap(phaseSent, phaseReturned)
		if goesOn && !returned {
			go r.work() // in this one's place, and ends as it would
		}
		select {
		case r.results <- result{it, err}: // there is room, except after many calls that stalled
		default:
			select {
			case r.results <- result{it, err}:
			case <-r.done:
				goesOn = false
			}
		}
	}()
	err = r.publish(it)
	returned = true
	return goesOn // which the deferred function decides
}

var errGoexit = errors.New("the publisher ended its goroutine (runtime.Goexit, as t.FailNow and testify's require call it)")

// publish hands one message to the broker's publisher.
func (r *relay) publish(it *item) error {
	if !r.owned(it) {
		return errLost
	}
	if !r.f.observing {
		return r.publishRecovered(it)
	}
	begun := time.Now()
	err := r.publishRecovered(it)
	if err == nil {
		r.f.observe(PublishedEvent{Message: *it.msg, Duration: time.Since(begun)})
	}
	return err
}

// owned tells whether a message may be published.
func (r *relay) owned(it *item) bool {
	if r.terms != nil {
		if term, ends := r.terms.LeaseTerm(); term == it.term && time.Now().Before(ends) {
			return true
		}
	}
	return r.store.Owned(it.msg.ID)
}

// publishRecovered makes an error of the publisher's panic, and of nobody else's. It is judged like any other: clients
// panic in outages, too. An error whose text panics, such as a nil pointer in an interface, is replaced: others ask for
// the text where nobody recovers.
func (r *relay) publishRecovered(it *item) (err error) {
	defer func() {
		if value := recover(); value != nil {
			if err != nil {
				value = fmt.Sprintf("its error, a %T, has no text: %v", err, value)
			}
			err = fmt.Errorf("the publisher panicked: %s", panicText(value))
		}
	}()
	msg := it.msg.Watermill()
	msg.SetContext(r.workCtx)
	if err = r.f.publisher.Publish(it.msg.Topic, msg); err != nil {
		_ = err.Error()
	}
	return err
}

// notify has the store wake the loop, where it can.
func (r *relay) notify() {
	notifier, ok := r.store.(Notifier)
	log := r.cfg.Logger.Info
	for ok && r.fetchCtx.Err() == nil {
		err := notifier.Notify(r.fetchCtx, r.f.Wake)
		if r.fetchCtx.Err() != nil {
			return
		}
		log("Noticing commits failed, polling instead", watermill.LogFields{"err": err})
		log = r.cfg.Logger.Debug // from now on it is known
		select {
		case <-r.fetchCtx.Done():
		case <-time.After(10 * time.Second):
		}
	}
}

// cleanUp deletes archived messages past their retention, on one of the instances that relay.
func (r *relay) cleanUp() {
	if r.cfg.Retention <= 0 {
		return
	}
	for {
		next := min(r.cfg.CleanupInterval, time.Second) // until it is known who relays
		if r.leads() {
			next = r.cfg.CleanupInterval
			n, err := r.store.DeleteProcessedBefore(r.fetchCtx, time.Now().Add(-r.cfg.Retention))
			if err != nil && r.fetchCtx.Err() == nil {
				r.cfg.Logger.Error("Deleting old messages failed, will be tried again", err, nil)
			} else if n > 0 {
				r.cfg.Logger.Debug("Deleted messages past their retention", watermill.LogFields{"deleted": n})
			}
		}
		select {
		case <-r.fetchCtx.Done():
			return
		case <-time.After(next):
		}
	}
}

func (r *relay) leads() bool {
	leader, ok := r.store.(Leader)
	return r.f.leading.Load() && (!ok || leader.Leads())
}
