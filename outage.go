package outbox

import (
	"cmp"
	"errors"
	"slices"
	"time"

	"github.com/sony/gobreaker/v2"
)

const (
	// tripAfter is how many failures in a row, to one topic, make an outage. When they are of so many messages, only
	// probes go out.
	tripAfter = 5
	// probeInterval is how often a topic that is down is tried, and the longest wait of a message that was not at fault.
	// The first probe goes out sooner, after firstProbe, and each further one after twice that, so that an outage that was
	// none costs little.
	probeInterval = time.Second
	firstProbe    = 50 * time.Millisecond
	// maxFailing bounds the attempts that are remembered. One that is forgotten costs its message another try.
	maxFailing = 65_536
	// forgetTopicAfter is when a topic is forgotten that nothing was sent to: its messages were set aside or deleted, or
	// are another instance's now.
	forgetTopicAfter = 10 * time.Minute
)

// outages tells failures of a message from failures of its topic or of the whole broker. It knows only topics that
// have failed; the dispatcher owns it.
//
// A failure is the message's own if another message to its topic, sent after this one's last attempt had ended, was
// acknowledged since. A first attempt has no last one, so its failure never counts: when a broker goes down, messages
// fail by the hundred, and none of them is at fault. Several failures in a row that are not the messages' own are an
// outage. If they are of several messages, the topic's breaker opens: one probe goes out every second, and everything
// else of the topic stays in the store. If they are of a few that come again and again, it does not, or those would delay others of their topic.
type outages struct {
	topics  map[string]*topicHealth
	failing int // attempts remembered, over all topics
	observe func(Event)
	// probes are those that no tick has announced, by when they are due. One whose topic has another nextProbe by now is
	// void.
	probes    []probe
	nextSweep time.Time // when to look for topics to forget
	noProbes  bool      // calls that hang hold all the memory that they may
	// changed is set when the set of topics to pause is another; paused tells which.
	changed bool
}

type probe struct {
	topic *topicHealth
	at    time.Time
}

type topicHealth struct {
	name    string
	breaker *gobreaker.TwoStepCircuitBreaker[any]
	attempt map[string]attempt // by attemptKey
	inARow  int                // failures since something was acknowledged
	failing []string           // the keys of the first few messages that they are of
	// lastOK is when the latest attempt that succeeded was begun.
	lastOK  time.Time
	since   time.Time // the outage's begin, zero while there is none
	heard   time.Time // when the last attempt has ended, or stalled
	probing bool
	// nextProbe is when a probe may go out, or the zero time once tick has announced it; probeWait is the last wait.
	nextProbe time.Time
	probeWait time.Duration
}

// attemptKey is the same for all claims of a message, whose IDs differ once one was lost. Two messages of a topic with one
// UUID count as one.
func attemptKey(m *Message) string { return cmp.Or(m.UUID, m.ID) }

// attempt remembers the last failure of a message.
type attempt struct {
	ended time.Time
	free  int // how many in a row were not counted
}

func newOutages(observe func(Event)) *outages {
	return &outages{topics: map[string]*topicHealth{}, observe: observe}
}

func newTopicHealth(name string) *topicHealth {
	t := &topicHealth{name: name, attempt: map[string]attempt{}}
	t.close()
	return t
}

// close gives the topic a breaker that lets everything through.
func (t *topicHealth) close() {
	t.breaker = gobreaker.NewTwoStepCircuitBreaker[any](gobreaker.Settings{
		Name:        t.name,
		MaxRequests: 1,
		Timeout:     firstProbe, // nextProbe may be later
		ReadyToTrip: func(gobreaker.Counts) bool { return len(t.failing) >= tripAfter },
	})
}

// count counts the failures in a row.
func (t *topicHealth) count(key string, err error) {
	if err == nil {
		t.inARow, t.failing, t.probeWait = 0, nil, 0
		return
	}
	t.inARow++
	if len(t.failing) < tripAfter && !slices.Contains(t.failing, key) {
		t.failing = append(t.failing, key)
	}
}

// health returns what is known of a topic, from its first failure on.
func (o *outages) health(topic string) *topicHealth {
	t := o.topics[topic]
	if t == nil {
		t = newTopicHealth(topic)
		o.topics[topic] = t
	}
	return t
}

// admits reports whether it may be sent now; if its topic is down, as the probe.
func (o *outages) admits(it *item, now time.Time) bool {
	t := o.topics[it.msg.Topic]
	if t == nil {
		return true
	}
	if t.breaker.State() == gobreaker.StateClosed {
		return true
	}
	if o.noProbes || t.probing || now.Before(t.nextProbe) {
		return false
	}
	done, err := t.breaker.Allow()
	if err != nil {
		return false
	}
	it.probe = done
	t.probing = true
	o.changed = true
	return true
}

// prefersOthers tells whether a probe of the topic is to be found, and it has failed before: a message that keeps failing
// by itself should not decide whether the topic works.
func (o *outages) prefersOthers(it *item) bool {
	t := o.topics[it.msg.Topic]
	if t == nil || t.breaker.State() != gobreaker.StateHalfOpen {
		return false
	}
	_, failed := t.attempt[attemptKey(it.msg)]
	return failed
}

// succeeded notes that the broker has acknowledged it.
func (o *outages) succeeded(it *item, now time.Time) {
	t := o.topics[it.msg.Topic]
	if t == nil {
		return
	}
	if it.startedAt.After(t.lastOK) {
		t.lastOK = it.startedAt
	}
	o.forget(t, it)
	o.report(t, it, nil, now)
	if len(t.attempt) == 0 && !t.probing && t.breaker.State() == gobreaker.StateClosed {
		delete(o.topics, t.name)
	}
}

// failed notes a failure and tells whether it counts against the message. If not, free is how many in a row did not, and
// outage whether that is because its topic is down.
func (o *outages) failed(it *item, err error, now time.Time) (counts bool, free int, outage bool) {
	t := o.health(it.msg.Topic)
	last, tried := t.attempt[attemptKey(it.msg)]
	if !tried && it.msg.Retries > 0 { // it was tried by another instance, or so long ago that it was forgotten
		last.ended, tried = it.claimedAt, true
	}
	counts = tried && t.lastOK.After(last.ended)
	if counts {
		last.free = 0
	} else {
		last.free++
	}
	last.ended = now
	o.remember(t, it, last)
	if t.heard = now; !counts || it.probe != nil { // else it says nothing about the topic
		o.report(t, it, err, now)
	}
	return counts, last.free, !t.since.IsZero()
}

// stalled notes that a Publish call hangs, as a failure of the topic.
func (o *outages) stalled(it *item, now time.Time) {
	t := o.health(it.msg.Topic)
	o.report(t, it, errors.New("a Publish call does not return"), now)
}

// report tells the breaker, and the observer if that begins or ends an outage.
func (o *outages) report(t *topicHealth, it *item, err error, now time.Time) {
	t.heard = now
	done := it.probe
	switch {
	case done != nil:
		it.probe, t.probing = nil, false
		o.changed = true
	case t.breaker.State() == gobreaker.StateClosed:
		var err error
		if done, err = t.breaker.Allow(); err != nil {
			return
		}
	case err == nil && it.phase.Load() == phaseStalled:
		t.close() // it was taken for a failure, and was slow
		o.changed = true
		done = func(error) {}
	default:
		return // sent before the breaker opened; the probes decide
	}
	t.count(attemptKey(it.msg), err)
	done(err)
	if t.breaker.State() == gobreaker.StateOpen {
		o.awaitProbe(t, now)
	}
	switch {
	case t.since.IsZero() && t.inARow >= tripAfter:
		t.since = now
		o.observe(OutageBegunEvent{Topic: t.name, Err: err})
	case t.inARow == 0:
		o.end(t, now)
	}
}

// awaitProbe has the next probe wait twice as long as the last.
func (o *outages) awaitProbe(t *topicHealth, now time.Time) {
	t.probeWait = min(max(2*t.probeWait, firstProbe), probeInterval)
	t.nextProbe = now.Add(t.probeWait + time.Millisecond) // the breaker's clock has begun after now
	i, _ := slices.BinarySearchFunc(o.probes, t.nextProbe, func(p probe, at time.Time) int { return p.at.Compare(at) })
	o.probes = slices.Insert(o.probes, i, probe{t, t.nextProbe})
	o.changed = true
}

// end ends a topic's outage, if there is one.
func (o *outages) end(t *topicHealth, now time.Time) {
	if t.since.IsZero() {
		return
	}
	o.observe(OutageEndedEvent{Topic: t.name, Duration: now.Sub(t.since)})
	t.since = time.Time{}
	o.changed = true
}

// answered notes that the broker refused it for good: the topic works.
func (o *outages) answered(it *item, now time.Time) {
	if t := o.topics[it.msg.Topic]; t != nil {
		o.forget(t, it)
		if it.probe != nil {
			o.report(t, it, nil, now)
		}
	}
}

// settled forgets a message that is given up.
func (o *outages) settled(it *item) {
	if t := o.topics[it.msg.Topic]; t != nil {
		o.forget(t, it)
	}
}

// dropped ends a probe that was not sent after all.
func (o *outages) dropped(it *item, now time.Time) {
	if t := o.topics[it.msg.Topic]; t != nil && it.probe != nil {
		o.report(t, it, errors.New("the probe was not sent"), now)
	}
}

func (o *outages) remember(t *topicHealth, it *item, a attempt) {
	key := attemptKey(it.msg)
	if _, known := t.attempt[key]; !known {
		o.failing++
	}
	t.attempt[key] = a
	if o.failing <= maxFailing {
		return
	}
	for _, other := range o.topics { // any will do
		for k := range other.attempt {
			if k != key || other != t {
				delete(other.attempt, k)
				o.failing--
				return
			}
		}
	}
}

func (o *outages) forget(t *topicHealth, it *item) {
	key := attemptKey(it.msg)
	t.failing = slices.DeleteFunc(t.failing, func(k string) bool { return k == key })
	if _, known := t.attempt[key]; known {
		delete(t.attempt, key)
		o.failing--
	}
}

// paused returns the topics whose messages are to stay in the store: those that are down, except when a probe may go out.
func (o *outages) paused(now time.Time) []string {
	var topics []string
	for name, t := range o.topics {
		if !t.since.IsZero() && (o.noProbes || t.probing || t.nextProbe.After(now)) {
			topics = append(topics, name)
		}
	}
	return topics
}

// nextProbe is when the next probe is due that no tick has announced; the zero time if none is.
func (o *outages) nextProbe() time.Time {
	if len(o.probes) == 0 {
		return time.Time{}
	}
	return o.probes[0].at
}

// untilProbe is how long messages of a topic that is down should wait.
func (o *outages) untilProbe(topic string, now time.Time) time.Duration {
	if t := o.topics[topic]; t != nil && t.nextProbe.After(now) {
		return t.nextProbe.Sub(now)
	}
	return probeInterval // a probe is out
}

// tick tells whether a probe has fallen due since the last one.
func (o *outages) tick(now time.Time) bool {
	due := false
	for ; len(o.probes) > 0 && !o.probes[0].at.After(now); o.probes = o.probes[1:] {
		t := o.probes[0].topic
		if !t.since.IsZero() && !t.probing && t.nextProbe.Equal(o.probes[0].at) {
			t.nextProbe = time.Time{}
			o.changed, due = true, true
		}
	}
	if !now.Before(o.nextSweep) {
		o.nextSweep = now.Add(forgetTopicAfter / 10)
		o.sweep(now)
	}
	return due
}

// sweep forgets the topics that nothing is heard of any more. A message that comes again has lost no more than a try.
func (o *outages) sweep(now time.Time) {
	for name, t := range o.topics {
		if o.noProbes {
			t.heard = now // nothing may be
		}
		if !t.probing && now.Sub(t.heard) >= forgetTopicAfter {
			o.end(t, now)
			o.failing -= len(t.attempt)
			delete(o.topics, name)
		}
	}
}
