package outbox

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// The store is asked every shortPoll after activity, for activeFor, or every sparsePoll at least where messages come one by
	// one: pollsPerGap times from one to the next.
	shortPoll   = 2 * time.Millisecond
	sparsePoll  = 10 * time.Millisecond
	pollsPerGap = 4
	activeFor   = 250 * time.Millisecond
	// linger is how long an outcome waits for others to be marked together with it.
	linger = 2 * time.Millisecond
	// longLinger is how long it waits while enough is claimed for all workers: a statement for a hundred messages costs
	// half as much as one for a thousand.
	longLinger = 20 * time.Millisecond
	// tablePatience is how long tables that were there may be away, as while they are restored.
	tablePatience = 30 * time.Second
	// settleTimeout bounds one attempt to mark, and the release at the end.
	settleTimeout = 10 * time.Second
	// maxBatches is how many batches one grant may be for.
	maxBatches = 4
	// drainAttempts is how many claims in a row may fail before Drain gives up: half a second's, and their own time.
	drainAttempts = 8
	// standbyPoll is the longest wait for the next Claim of an instance that holds no lease, or that has enough to do.
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
	f      *Forwarder
	cfg    *Config
	store  LeasedStore
	pauser TopicPauser  // the store, if it is one
	terms  TermReporter // likewise
	drain  bool         // stop when nothing is left to publish

	grants  chan grant
	claims  chan claimed
	jobs    chan *item
	results chan result
	marks   chan marks
	marked  chan marks
	done    chan struct{} // closed at the end, for workers that come back late

	fetchCtx, workCtx context.Context //nolint:containedctx // they end at different steps of a stop
	stopFetch         context.CancelFunc
	giveUp            context.Context //nolint:containedctx // ends the marker's attempts
	goroutines        sync.WaitGroup

	// The loop's own.
	dispatcher  *dispatcher
	begun       time.Time
	retries     []time.Time // when messages that have failed are due again, ascending
	started     int         // workers that have not ended, those of stalled calls included
	granted     bool
	full        bool // the last claim brought all that it was to
	again       bool // something has come up since the grant, which its claim may not have seen
	marking     bool
	nextPoll    time.Time
	nextPause   time.Time // when the store may be told again which topics to leave out
	lastGrant   time.Time
	lastActive  time.Time
	arrivals    arrivals
	pollDelay   time.Duration
	claimErr    error       // of the last claim
	claimsFail  atomic.Bool // for the marker
	lastClaimed time.Time   // when a claim was last answered, if ever
	claimFails  int         // in a row, ErrNoLease aside
	stopping    bool
	deadline    <-chan time.Time // the close timeout, once stopping
	fatal       error            // what has stopped it, if not its context
	drained     bool
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
	term             int64 // in which msgs were claimed
}

type result struct {
	item *item
	err  error
}

func newRelay(f *Forwarder, drain bool) *relay {
	r := &relay{
		f: f, cfg: &f.cfg, store: f.store, drain: drain,
		grants: make(chan grant, 1), claims: make(chan claimed, maxBatches),
		jobs: make(chan *item, f.cfg.Concurrency), results: make(chan result, f.cfg.Concurrency),
		marks: make(chan marks), marked: make(chan marks, 1), done: make(chan struct{}),
		dispatcher: newDispatcher(&f.cfg, f.observe), begun: time.Now(),
	}
	r.pauser, r.dispatcher.pauses = f.store.(TopicPauser)
	r.terms, _ = f.store.(TermReporter)
	return r
}

// run relays until ctx ends or, when draining, until nothing is left.
func (r *relay) run(ctx context.Context) error {
	base := ContextWithObserver(context.WithoutCancel(ctx), ObserverFunc(func(_ context.Context, e Event) { r.f.observe(e) }))
	var stopWork, stopMarks context.CancelFunc
	r.fetchCtx, r.stopFetch = context.WithCancel(base)
	r.workCtx, stopWork = context.WithCancel(base)
	r.giveUp, stopMarks = context.WithCancel(base)
	defer r.stopFetch()
	defer stopWork()
	defer stopMarks()

	if r.pauser != nil {
		r.pauser.PauseTopics() // those of the last run
	}
	r.goroutines.Go(r.fetch)
	r.goroutines.Go(r.mark)
	if !r.drain {
		r.goroutines.Go(r.notify)
		r.goroutines.Go(r.cleanUp)
	}
	err := r.loop(ctx)
	err = errors.Join(r.fatal, err)

	r.stopFetch()
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
func (r *relay) loop(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	stop := ctx.Done()
	for {
		if r.dispatcher.saturated() {
			runtime.Gosched() // until more workers are through, who are then served together: a third less CPU over Kafka
		}
		now := time.Now()
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
			r.marking = r.marking && m.late
			r.dispatcher.marked(m)
			r.awaitRetries(m.outcomes, time.Now())
			r.pollWithin(shortPoll) // keys have become free
		case <-r.f.wake:
			r.pollWithin(0)
		case <-timer.C:
		case <-stop:
			stop = nil
			r.stop()
		case <-r.deadline:
			running := r.dispatcher.publishing.n
			return fmt.Errorf("outbox: %w: after %v, %d Publish calls were still running and %d messages could not be marked; "+
				"all of them stay in the outbox, and are published again", ErrCloseTimeout, r.cfg.CloseTimeout, running,
				r.dispatcher.inFlight+r.dispatcher.hanging-running)
		}
	}
}

// stop begins the end: nothing more is claimed or sent, what is being published and marked gets the close timeout.
func (r *relay) stop() {
	if r.stopping {
		return
	}
	r.stopping = true
	r.stopFetch()
	r.dispatcher.releaseWaiting(time.Now())
	r.deadline = time.After(r.cfg.CloseTimeout)
}

func (r *relay) tick(now time.Time) {
	r.dispatcher.tick(now)
	if r.dispatcher.outages.tick(now) {
		r.pollWithin(0)
	}
	for len(r.retries) > 0 && !r.retries[0].After(now) {
		r.retries = r.retries[1:]
		r.pollWithin(0)
	}
	if r.dispatcher.outages.changed && !now.Before(r.nextPause) { // with many topics down one or the other always changes
		r.dispatcher.outages.changed, r.nextPause = false, now.Add(shortPoll)
		if r.pauser != nil {
			r.pauser.PauseTopics(r.dispatcher.outages.paused(now)...)
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
	few := r.fewMessages() // a read for these costs as much as one for many
	plenty := 2 * max(r.cfg.BatchSize, r.cfg.Concurrency)
	// A Claim is also how the store shares slots with other instances, so it is never put off for long.
	if r.dispatcher.saturated() && (limit < few || r.dispatcher.ready.n >= plenty) && now.Sub(r.lastGrant) < standbyPoll {
		r.nextPoll = now.Add(shortPoll)
		return
	}
	if limit < few/4 && now.Sub(r.lastGrant) < shortPoll {
		r.nextPoll = r.lastGrant.Add(shortPoll)
		return
	}
	r.granted, r.lastGrant = true, now
	r.grants <- grant{limit, r.cfg.MaxInFlightBytes - r.dispatcher.inFlightBytes, r.dispatcher.idle()}
}

// mayGrant tells whether there is room, and nothing under way: while the store does not know which topics are down, it
// would give out their messages again and again.
func (r *relay) mayGrant() bool {
	return !r.granted && !r.stopping && !r.drained && !r.dispatcher.outages.changed &&
		r.dispatcher.inFlight < r.cfg.MaxInFlight && r.dispatcher.inFlightBytes < r.cfg.MaxInFlightBytes
}

// take takes the answer to a grant, and decides when to ask again.
func (r *relay) take(c claimed, now time.Time) {
	r.granted, r.full = !c.last, c.full
	r.dispatcher.claimed(c.msgs, c.term, now)
	if r.stopping {
		r.dispatcher.releaseWaiting(now)
		return
	}
	if c.err != nil {
		r.claimFailed(c.err, now)
		return
	}
	if r.claimErr != nil {
		r.claimErr, r.claimFails, r.pollDelay = nil, 0, 0
	}
	r.f.claimedOnce(true)
	r.lastClaimed = now
	r.claimsFail.Store(false)
	r.drained = r.drain && c.idle && len(c.msgs) == 0
	r.arrivals.count(len(c.msgs), now)
	poll := min(r.arrivals.poll(now), r.cfg.PollInterval)
	switch {
	case r.full:
		r.nextPoll = now
	case len(c.msgs) > 0:
		r.nextPoll = now.Add(poll)
	case now.Sub(r.lastActive) < activeFor:
		r.pollDelay = shortPoll
		r.nextPoll = now.Add(poll)
	default:
		r.pollDelay = min(max(2*r.pollDelay, shortPoll), r.cfg.PollInterval)
		r.nextPoll = now.Add(r.pollDelay)
	}
	if r.again && c.last {
		r.again = false
		r.pollWithin(shortPoll)
	}
}

// arrivals are how often claims find something.
type arrivals struct {
	gap  time.Duration // from one to the next, on the average of the last few
	last time.Time
}

func (a *arrivals) count(messages int, now time.Time) {
	if messages == 0 {
		return
	}
	const few = 8
	gap := min(now.Sub(a.last), pollsPerGap*sparsePoll)
	a.gap += (gap - a.gap) * time.Duration(min(messages, few)) / few
	a.last = now
}

// poll is how soon to ask for more, while messages come.
func (a *arrivals) poll(now time.Time) time.Duration {
	return min(max(max(a.gap, now.Sub(a.last))/pollsPerGap, shortPoll), sparsePoll)
}

// claimFailed decides whether waiting may mend what is wrong.
func (r *relay) claimFailed(err error, now time.Time) {
	noLease := errors.Is(err, ErrNoLease)
	r.claimsFail.Store(true)
	if !noLease {
		r.claimFails++
	}
	missing := errors.Is(err, ErrNotMigrated) && now.Sub(r.lastClaimed) >= tablePatience
	if missing || errors.Is(err, ErrClosed) || (r.drain && (noLease || r.claimFails == drainAttempts)) {
		r.fatal = err
		r.stop()
		return
	}
	if noLease {
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
		if res.err == nil {
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

// awaitRetries notes when to ask the store for messages that wait for their next attempt: the store's wait has begun
// when it was told. Times are rounded up, so that there are not more than there are polls.
func (r *relay) awaitRetries(outcomes []Outcome, now time.Time) {
	for i := range outcomes {
		if outcomes[i].Status != StatusPending {
			continue
		}
		at := r.begun.Add((now.Sub(r.begun) + outcomes[i].RetryAfter).Truncate(shortPoll) + shortPoll)
		if i, known := slices.BinarySearchFunc(r.retries, at, time.Time.Compare); !known {
			r.retries = slices.Insert(r.retries, i, at)
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
	if d.pending.items < max(r.fewMessages(), 1) && d.workers() > 0 && now.Sub(d.pendingSince) < r.linger() {
		return nil, marks{}
	}
	return r.marks, d.pending
}

// fewMessages is a batch, or a part of a window that is small, which must not fill with what waits to be marked.
func (r *relay) fewMessages() int { return min(r.cfg.BatchSize, r.cfg.MaxInFlight/4) }

func (r *relay) linger() time.Duration {
	if r.dispatcher.saturated() {
		return longLinger
	}
	return linger
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
		earlier(r.dispatcher.pendingSince.Add(r.linger()))
	}
	if len(r.retries) > 0 {
		earlier(r.retries[0])
	}
	earlier(r.dispatcher.nextTick())
	earlier(r.dispatcher.outages.nextProbe())
	if r.dispatcher.outages.changed {
		earlier(r.nextPause)
	}
	return max(next.Sub(now), 100*time.Microsecond)
}
