package outbox

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
)

const (
	// shortPoll is how often the store is asked after activity, activeFor for how long.
	shortPoll = 2 * time.Millisecond
	activeFor = 250 * time.Millisecond
	// linger is how long an outcome waits for others to be marked together with it.
	linger = 2 * time.Millisecond
	// settleTimeout bounds one attempt to mark, and the release at the end.
	settleTimeout = 10 * time.Second
	// maxBatches is how many batches one grant may be for.
	maxBatches = 4
	// standbyPoll is the longest wait of an instance that holds no lease.
	standbyPoll = 250 * time.Millisecond
)

// relay is one run of a Forwarder. Four kinds of goroutines, joined by channels:
//
//	fetcher  asks the store for what the loop allows     grants → claims    1, 4
//	loop     owns the dispatcher and everything below    run's own goroutine
//	workers  publish one message at a time               jobs → results     Concurrency each
//	marker   tells the store what became of messages     marks → marked     unbuffered, 1
//
// The loop never blocks on a send: it has at most one grant and one batch of marks out, and sends a job only where a
// worker is free. All goroutines end when run returns, except workers whose Publish call hangs: those end with it.
type relay struct {
	f     *Forwarder
	cfg   *Config
	store LeasedStore
	drain bool // stop when nothing is left to publish

	grants  chan grant
	claims  chan claimed
	jobs    chan *item
	results chan result
	marks   chan marks
	marked  chan marks
	due     chan struct{} // a message that has failed may be due again; capacity 1
	done    chan struct{} // closed at the end, for workers that come back late

	fetchCtx, workCtx context.Context //nolint:containedctx // they end at different steps of a stop
	giveUp            context.Context //nolint:containedctx // ends the marker's attempts
	goroutines        sync.WaitGroup

	// The loop's own.
	dispatcher *dispatcher
	started    int // workers that have not ended, those of stalled calls included
	granted    bool
	full       bool // the last claim brought all that it was to
	again      bool // something has come up since the grant, which its claim may not have seen
	marking    bool
	nextPoll   time.Time
	lastGrant  time.Time
	lastActive time.Time
	pollDelay  time.Duration
	claimErr   error // of the last claim
	stopping   bool
	drained    bool
}

// grant is what the fetcher may claim: limit messages of bytes in size, a batch at a time, while each batch is full.
type grant struct {
	limit, bytes int
	idle         bool // nothing was in flight when it was given
}

// claimed is the answer to a grant, or with last false a part of it.
type claimed struct {
	msgs             []Message
	full, last, idle bool
	err              error
}

type result struct {
	item *item
	err  error
}

func newRelay(f *Forwarder, drain bool) *relay {
	return &relay{
		f: f, cfg: &f.cfg, store: f.store, drain: drain,
		grants: make(chan grant, 1), claims: make(chan claimed, maxBatches),
		jobs: make(chan *item, f.cfg.Concurrency), results: make(chan result, f.cfg.Concurrency),
		marks: make(chan marks), marked: make(chan marks, 1), due: make(chan struct{}, 1), done: make(chan struct{}),
		dispatcher: newDispatcher(&f.cfg, f.observe),
	}
}

// run relays until ctx ends or, when draining, until nothing is left.
func (r *relay) run(ctx context.Context) error {
	base := ContextWithObserver(context.WithoutCancel(ctx), ObserverFunc(func(_ context.Context, e Event) { r.f.observe(e) }))
	var stopFetch, stopWork, stopMarks context.CancelFunc
	r.fetchCtx, stopFetch = context.WithCancel(base)
	r.workCtx, stopWork = context.WithCancel(base)
	r.giveUp, stopMarks = context.WithCancel(base)
	defer stopFetch()
	defer stopWork()
	defer stopMarks()

	r.goroutines.Go(r.fetch)
	r.goroutines.Go(r.mark)
	if !r.drain {
		r.goroutines.Go(r.notify)
		r.goroutines.Go(r.cleanUp)
	}
	err := r.loop(ctx, stopFetch)

	stopFetch()
	stopWork() // Publish calls that are still running are told to end
	stopMarks()
	close(r.done)
	close(r.grants)
	close(r.jobs)
	close(r.marks)
	r.goroutines.Wait()
	releaseCtx, cancel := context.WithTimeout(base, settleTimeout)
	defer cancel()
	if releaseErr := r.store.Release(releaseCtx); releaseErr != nil {
		err = errors.Join(err, fmt.Errorf("outbox: release the leases: %w", releaseErr))
	}
	return err
}

// loop returns when everything has stopped, or the close timeout is over.
func (r *relay) loop(ctx context.Context, stopFetch context.CancelFunc) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var deadline <-chan time.Time
	stop := ctx.Done()
	for {
		now := time.Now()
		if err := r.fatal(); err != nil {
			return err
		}
		if (r.drained || r.stopping) && !r.granted && !r.marking && r.dispatcher.idle() {
			return nil
		}
		r.tick(now)
		r.grant(now) // first, so that the fetcher reads while the workers are fed
		r.dispatch(now)
		timer.Reset(r.untilNext(now))
		marks, batch := r.nextMarks(now)
		select {
		case marks <- batch:
			r.dispatcher.takeMarks()
			r.marking = true
		case res := <-r.results:
			r.takeResults(res)
		case c := <-r.claims:
			r.take(c, time.Now())
		case m := <-r.marked:
			r.marking = false
			r.dispatcher.marked(m)
			r.pollWithin(shortPoll) // keys have become free
		case <-r.f.wake:
			r.pollWithin(0)
		case <-r.due:
			r.pollWithin(0)
		case <-timer.C:
		case <-stop:
			stop, r.stopping = nil, true
			stopFetch()
			r.dispatcher.releaseWaiting(time.Now())
			deadline = time.After(r.cfg.CloseTimeout)
		case <-deadline:
			running := r.dispatcher.publishing.n
			return fmt.Errorf("outbox: %w: after %v, %d Publish calls were still running and %d messages could not be marked; "+
				"all of them stay in the outbox, and are published again", ErrCloseTimeout, r.cfg.CloseTimeout, running,
				r.dispatcher.inFlight-running)
		}
	}
}

// fatal returns an error of the last claim that makes it pointless to go on.
func (r *relay) fatal() error {
	switch {
	case r.claimErr == nil || r.stopping:
		return nil
	case errors.Is(r.claimErr, ErrNotMigrated) || errors.Is(r.claimErr, ErrClosed) || r.drain:
		return r.claimErr
	}
	return nil
}

func (r *relay) tick(now time.Time) {
	r.dispatcher.tick(now)
	if r.dispatcher.outages.tick(now) {
		r.pollWithin(0)
	}
	if r.dispatcher.outages.changed {
		r.dispatcher.outages.changed = false
		if pauser, ok := r.store.(TopicPauser); ok {
			pauser.PauseTopics(r.dispatcher.outages.paused(now)...)
			r.pollWithin(0)
		}
	}
}

// dispatch sends what is ready to the workers that are free.
func (r *relay) dispatch(now time.Time) {
	if r.stopping {
		return
	}
	for r.dispatcher.workers() < r.cfg.Concurrency {
		it := r.dispatcher.next(now)
		if it == nil {
			return
		}
		if r.started-r.dispatcher.stalled < r.dispatcher.workers() {
			r.started++
			go r.work() // ends with the run, or with a Publish call that stalled
		}
		r.jobs <- it
	}
}

// grant asks the fetcher for more, if there is room and it is time: for several batches while there is a backlog, so that
// it need not wait for the loop after each.
func (r *relay) grant(now time.Time) {
	if !r.mayGrant() || now.Before(r.nextPoll) {
		return
	}
	batches := 1
	if r.full {
		batches = maxBatches
	}
	limit := min(r.cfg.MaxInFlight-r.dispatcher.inFlight, batches*r.cfg.BatchSize)
	if limit < min(r.cfg.BatchSize, r.cfg.MaxInFlight)/4 && now.Sub(r.lastGrant) < shortPoll {
		r.nextPoll = r.lastGrant.Add(shortPoll) // a read for a few messages costs as much as one for many
		return
	}
	r.granted, r.lastGrant = true, now
	r.grants <- grant{limit, r.cfg.MaxInFlightBytes - r.dispatcher.inFlightBytes, r.dispatcher.idle()}
}

func (r *relay) mayGrant() bool {
	return !r.granted && !r.stopping && !r.drained &&
		r.dispatcher.inFlight < r.cfg.MaxInFlight && r.dispatcher.inFlightBytes < r.cfg.MaxInFlightBytes
}

// take takes the answer to a grant, and decides when to ask again.
func (r *relay) take(c claimed, now time.Time) {
	r.granted, r.full = !c.last, c.full
	r.dispatcher.claimed(c.msgs, now)
	if r.stopping {
		r.dispatcher.releaseWaiting(now)
		return
	}
	if c.err != nil {
		r.claimFailed(c.err, now)
		return
	}
	if r.claimErr != nil {
		r.claimErr, r.pollDelay = nil, 0
	}
	r.f.claimedOnce(true)
	r.drained = r.drain && c.idle && len(c.msgs) == 0
	switch {
	case r.full:
		r.nextPoll = now
	case len(c.msgs) > 0:
		r.nextPoll = now.Add(shortPoll)
	case now.Sub(r.lastActive) < activeFor:
		r.pollDelay = shortPoll
		r.nextPoll = now.Add(shortPoll)
	default:
		r.pollDelay = min(max(2*r.pollDelay, shortPoll), r.cfg.PollInterval)
		r.nextPoll = now.Add(r.pollDelay)
	}
	if r.again && c.last {
		r.again = false
		r.pollWithin(shortPoll)
	}
}

func (r *relay) claimFailed(err error, now time.Time) {
	if errors.Is(err, ErrNoLease) {
		r.f.claimedOnce(false)
		r.claimErr = err
		r.nextPoll = now.Add(min(r.cfg.PollInterval, standbyPoll))
		return
	}
	if r.claimErr == nil || errors.Is(r.claimErr, ErrNoLease) {
		r.pollDelay = shortPoll
		r.f.cfg.Logger.Error("Claiming messages failed, will be tried again", err, nil)
	}
	r.claimErr = err
	r.pollDelay = min(2*r.pollDelay, max(r.cfg.PollInterval, time.Second))
	r.nextPoll = now.Add(r.pollDelay)
}

func (r *relay) pollWithin(d time.Duration) {
	r.again = r.again || r.granted
	if at := time.Now().Add(d); r.claimErr == nil && at.Before(r.nextPoll) {
		r.nextPoll = at
	}
}

// takeResults takes one result, and what others are there.
func (r *relay) takeResults(res result) {
	now := time.Now()
	for n := 1; ; n++ {
		if res.item.phase.Load() == phaseStalled {
			r.started-- // its worker has ended
		}
		r.dispatcher.returned(res.item, res.err, now)
		if res.err != nil {
			r.wakeForRetry()
		} else {
			r.lastActive = now // claims alone are none: in an outage they come to nothing
		}
		if n == r.cfg.Concurrency {
			return // and look after the other channels
		}
		select {
		case res = <-r.results:
		default:
			return
		}
	}
}

// wakeForRetry has the store asked when the message that has just failed is due again.
func (r *relay) wakeForRetry() {
	if n := len(r.dispatcher.pending.outcomes); n > 0 {
		if after := r.dispatcher.pending.outcomes[n-1].RetryAfter; after > 0 {
			time.AfterFunc(after+shortPoll, func() {
				select {
				case r.due <- struct{}{}:
				default:
				}
			})
		}
	}
}

// nextMarks returns the channel to the marker if there is something to send and it is time to: what has gathered while
// the last batch was written, or a few milliseconds' worth.
func (r *relay) nextMarks(now time.Time) (chan<- marks, marks) {
	d := r.dispatcher
	if r.marking || d.pending.empty() {
		return nil, marks{}
	}
	if d.pending.items < r.cfg.BatchSize && d.workers() > 0 && now.Sub(d.pendingSince) < linger {
		return nil, marks{}
	}
	return r.marks, d.pending
}

// untilNext is when the loop has something to do even if nothing happens.
func (r *relay) untilNext(now time.Time) time.Duration {
	next := now.Add(r.cfg.PollInterval)
	earlier := func(t time.Time) {
		if !t.IsZero() && t.Before(next) {
			next = t
		}
	}
	if r.mayGrant() {
		earlier(r.nextPoll)
	}
	if !r.marking && !r.dispatcher.pending.empty() {
		earlier(r.dispatcher.pendingSince.Add(linger))
	}
	earlier(r.dispatcher.nextTick())
	earlier(r.dispatcher.outages.nextProbe())
	return max(next.Sub(now), 100*time.Microsecond)
}

// fetch is the fetcher.
func (r *relay) fetch() {
	for g := range r.grants {
		for last := false; !last; {
			begun, n := time.Now(), min(g.limit, r.cfg.BatchSize)
			msgs, err := r.store.Claim(r.fetchCtx, n, g.bytes)
			if len(msgs) > 0 && r.f.observing {
				r.f.observe(ClaimedEvent{Messages: msgs, Duration: time.Since(begun)})
			}
			g.limit -= n
			for i := range msgs {
				g.bytes -= msgs[i].Size()
			}
			last = err != nil || len(msgs) < n || g.limit <= 0 || g.bytes <= 0
			r.claims <- claimed{msgs: msgs, full: len(msgs) == n, last: last, idle: g.idle, err: err} // there is room
			g.idle = false
		}
	}
}

func (r *relay) work() {
	for it := range r.jobs {
		err := r.publish(it)
		stalled := !it.phase.CompareAndSwap(phaseSent, phaseReturned)
		select {
		case r.results <- result{it, err}: // there is room, except after many calls that stalled
		default:
			select {
			case r.results <- result{it, err}:
			case <-r.done:
				return
			}
		}
		if stalled {
			return // another worker has taken this one's place
		}
	}
}

// publish hands one message to the broker's publisher.
func (r *relay) publish(it *item) error {
	if !r.store.Owned(it.msg.ID) {
		return errLost
	}
	if !r.f.observing {
		return r.publishRecovered(it)
	}
	begun := time.Now()
	err := r.publishRecovered(it)
	if err == nil {
		r.f.observe(PublishedEvent{Message: it.msg, Duration: time.Since(begun)})
	}
	return err
}

// publishRecovered makes an error of the publisher's panic, and of nobody else's.
func (r *relay) publishRecovered(it *item) (err error) {
	defer func() {
		if value := recover(); value != nil {
			err = panicError{value}
		}
	}()
	msg := it.msg.Watermill()
	msg.SetContext(r.workCtx)
	return r.f.publisher.Publish(it.msg.Topic, msg)
}

// mark is the marker. It tries each batch until the store has it.
func (r *relay) mark() {
	for m := range r.marks {
		for attempt := 1; !r.tell(m); attempt++ {
			select {
			case <-r.giveUp.Done():
			case <-time.After(fullJitter(50*time.Millisecond, 5*time.Second, attempt)):
				continue
			}
			break
		}
		r.marked <- m
	}
}

// tell tells the store once, on a context that a stop does not end.
func (r *relay) tell(m marks) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.workCtx), settleTimeout)
	defer cancel()
	if len(m.outcomes) > 0 {
		err := r.store.Settle(ctx, m.outcomes...)
		if err != nil && !errors.Is(err, ErrNotClaimed) {
			r.cfg.Logger.Error("Marking messages failed, will be tried again", err, watermill.LogFields{
				"messages": len(m.outcomes),
			})
			return errors.Is(err, ErrClosed)
		}
	}
	if len(m.released) > 0 {
		if err := r.store.Release(ctx, m.released...); err != nil {
			r.cfg.Logger.Error("Releasing messages failed", err, watermill.LogFields{"messages": len(m.released)})
		}
	}
	return true
}

// notify has the store wake the loop, where it can.
func (r *relay) notify() {
	notifier, ok := r.store.(Notifier)
	for ok && r.fetchCtx.Err() == nil {
		err := notifier.Notify(r.fetchCtx, r.f.Wake)
		if r.fetchCtx.Err() != nil {
			return
		}
		r.cfg.Logger.Debug("Noticing commits failed, polling instead", watermill.LogFields{"err": err})
		select {
		case <-r.fetchCtx.Done():
		case <-time.After(10 * time.Second):
		}
	}
}

// cleanUp deletes archived messages past their retention, on the instance that relays.
func (r *relay) cleanUp() {
	if r.cfg.Retention <= 0 {
		return
	}
	for {
		next := min(r.cfg.CleanupInterval, time.Second) // until it is known who relays
		if r.f.leading.Load() {
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
