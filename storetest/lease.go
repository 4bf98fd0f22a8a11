package storetest

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
)

func leasePromises() []promise {
	return []promise{
		{name: "IsHeldByOneInstance", check: leaseIsHeldByOneInstance},
		{name: "IsSharedWithANewInstance", check: leaseIsShared},
		{name: "PassesOnWithAllPendingMessages_WhenItHasExpired", check: leasePassesOn},
		{name: "GivesLateOutcomesOfItsFormerOwnerTheirEffect", check: leaseLateOutcomesCount},
		{name: "GivesLateOutcomesOfItsFormerOwnerTheirEffect_WhenThatHasNoticed", check: leaseLateOutcomesOfOneWhoKnows},
		{name: "KeepsLateOutcomesFromBringingAMessageBack", check: leaseLateOutcomesBringNothingBack},
		{name: "LetsAKeyGoOn_WhenALateOutcomeEndsTheMessageItWaitsFor", check: leaseLetsAKeyGoOn},
		{name: "ShowsAllPendingMessages_WhenItIsRegained", check: leaseShowsAllWhenRegained},
		{name: "KeepsNewerClaims_WhenOutcomesOfLostOnesComeLate", check: leaseKeepsNewerClaims},
		{name: "SettlesTwoClaimsOfOneMessageTogether", check: leaseSettlesTwoClaims},
		{name: "IsOwnedUntilTheClaimEnds", check: leaseIsOwned},
		{name: "IsOwnedNoMore_WhenAnotherInstanceHasIt", check: leaseIsOwnedNoMore},
		{name: "TellsObserversOfItsGainAndLoss", check: leaseTellsObservers},
		{name: "MakesOneInstanceTheLeader", check: leaseMakesALeader},
		{name: "TellsItsTerm_WhichEndsWithAnyLoss", check: leaseTellsItsTerm},
		{name: "OutlastsALongClaim", check: leaseOutlastsALongClaim},
	}
}

// leaseRecorder is an observer of the leases of one instance.
type leaseRecorder struct {
	mu         sync.Mutex
	held       map[int]bool
	lost       int // slots, in all events
	lossErrors []error
	surprises  []string
}

func (r *leaseRecorder) Observe(_ context.Context, event outbox.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.held == nil {
		r.held = map[int]bool{}
	}
	switch event := event.(type) {
	case outbox.LeaseGainedEvent:
		for _, slot := range event.Slots {
			if r.held[slot] {
				r.surprises = append(r.surprises, "a slot was gained twice")
			}
			r.held[slot] = true
		}
		if len(event.Slots) == 0 {
			r.surprises = append(r.surprises, "a LeaseGainedEvent has no slots")
		}
	case outbox.LeaseLostEvent:
		for _, slot := range event.Slots {
			if !r.held[slot] {
				r.surprises = append(r.surprises, "a slot was lost that was not held")
			}
			delete(r.held, slot)
		}
		r.lost += len(event.Slots)
		r.lossErrors = append(r.lossErrors, event.Err)
	}
}

// slots returns the slots that are held by the events so far.
func (r *leaseRecorder) slots() []int {
	r.mu.Lock()
	defer r.mu.Unlock()
	var slots []int
	for slot := range r.held {
		slots = append(slots, slot)
	}
	slices.Sort(slots)
	return slots
}

func (r *leaseRecorder) losses() (slots int, errs []error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lost, slices.Clone(r.lossErrors)
}

func (r *leaseRecorder) check(e *env) {
	e.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	require.Empty(e, r.surprises, "events of leases")
}

// claimAll claims nothing, but the leases, until the instance has them all.
func (e *env) claimAll(l outbox.LeasedStore, r *leaseRecorder) {
	e.Helper()
	ctx := outbox.ContextWithObserver(e.ctx, r)
	e.poll("the only instance gains all slots, by the LeaseGainedEvents to the observer in the context of Claim",
		func() bool {
			_, err := e.tryClaim(ctx, l, 0, noMaxBytes)
			require.NoError(e, err)
			return len(r.slots()) == e.features.Slots
		})
}

func leaseIsHeldByOneInstance(e *env) {
	a := e.openLeased()
	e.saveNumbered(a, "", "m", 5)
	recorder := &leaseRecorder{}
	e.claimAll(a, recorder)
	e.await(a, numbered("m", 5)...)
	for range 3 {
		b := e.openLeased()
		msgs, err := b.Claim(e.ctx, many, noMaxBytes)
		require.Empty(e, uuids(msgs), "messages that another instance has claimed")
		if e.features.Slots == 1 {
			require.ErrorIs(e, err, outbox.ErrNoLease, "Claim while another instance holds all slots")
		}
		msgs, err = b.FetchPending(e.ctx, many)
		require.Empty(e, uuids(msgs), "messages that another instance has claimed")
		require.True(e, err == nil || errors.Is(err, outbox.ErrNoLease), "FetchPending while another instance holds all "+
			"slots: %v", err)
		e.release(b)
	}
}

func leaseIsShared(e *env) {
	e.needs("Features.Slots > 1", e.features.Slots > 1)
	a, b := e.openLeased(), e.openLeased()
	ofA, ofB := &leaseRecorder{}, &leaseRecorder{}
	e.claimAll(a, ofA)
	e.poll("a second instance gets a share of the slots", func() bool {
		_, err := e.tryClaim(outbox.ContextWithObserver(e.ctx, ofA), a, 0, noMaxBytes)
		require.NoError(e, err)
		_, err = e.tryClaim(outbox.ContextWithObserver(e.ctx, ofB), b, 0, noMaxBytes)
		require.NoError(e, err)
		for _, slot := range ofB.slots() {
			require.NotContains(e, ofA.slots(), slot, "slot %d is held by two instances", slot)
		}
		share := e.features.Slots / 2
		return len(ofA.slots()) >= share && len(ofB.slots()) >= share
	})
	ofA.check(e)
	ofB.check(e)
	var want []string
	for i := range 8 * e.features.Slots {
		uuid := numbered("m", i+1)[i]
		e.save(a, keyed(uuid, uuid))
		want = append(want, uuid)
	}
	e.awaitFrom([]outbox.Store{a, b}, want...)
}

func leasePassesOn(e *env) {
	a, b := e.openLeased(), e.openLeased()
	e.save(a, keyed("k1", "k"))
	e.postpone(a, 0, e.await(a, "k1")...)
	e.await(a, "k1")
	e.save(a, keyed("k2", "k"), keyed("k3", "k"), unkeyed("u1"))
	e.await(a, "u1")
	e.expire(a)

	got := e.drain(b, "k1", "k2", "k3", "u1")
	order := uuids(got)
	requireBefore(e, order, "k1", "k2")
	requireBefore(e, order, "k2", "k3")
	for _, m := range got {
		want := 0
		if m.UUID == "k1" {
			want = 1
		}
		require.Equal(e, want, m.Retries, "retries of message %s when another instance has taken over", m.UUID)
	}
	e.nothing(b, "all messages are processed")
}

// What the former owner has published is done: nobody else shall publish it if that can be helped.
func leaseLateOutcomesCount(e *env) {
	a, b := e.openLeased(), e.openLeased()
	e.saveNumbered(a, "", "m", 3)
	claimed := e.await(a, numbered("m", 3)...)
	e.expire(a)
	e.await(b, numbered("m", 3)...)

	e.settle(a, processed(claimed[0])...)
	e.settle(a, outbox.Outcome{ID: claimed[1].ID, Status: outbox.StatusFailed, Err: errBroker})
	e.release(b)
	c := e.openLeased()
	require.Equal(e, []string{"m3"}, uuids(e.arrivals(c)), "m1 and m2 were settled by an instance that had claimed "+
		"them, after "+
		"it had lost its lease: that must count")
	e.requireSetAside(a, 1, "the former owner has set one aside")
}

func leaseLateOutcomesOfOneWhoKnows(e *env) {
	a, b := e.openLeased(), e.openLeased()
	e.saveNumbered(a, "", "m", 4)
	claimed := e.await(a, numbered("m", 4)...)
	e.expire(a)
	e.await(b, numbered("m", 4)...)
	e.awaitLoss(a, claimed[3])

	e.settle(a, processed(claimed[0])...)
	e.settle(a, outbox.Outcome{ID: claimed[1].ID, Status: outbox.StatusPending, Err: errBroker})
	e.release(a, claimed[2])
	for _, m := range claimed[:3] {
		require.ErrorIs(e, a.Settle(e.ctx, processed(m)...), outbox.ErrNotClaimed, "a second Settle, or one after "+
			"Release, of a "+
			"message whose lease was lost")
	}
	e.release(a)
	e.release(b)
	arrived := e.await(e.openLeased(), "m2", "m3", "m4") // m1 is done
	require.Equal(e, 1, arrived[0].Retries, "retries of m2, which its former owner has settled as pending with an error")
	require.Zero(e, arrived[1].Retries, "retries of m3, which its former owner has released")
}

// awaitLoss waits until the instance knows that a claim of its own is lost.
func (e *env) awaitLoss(l outbox.LeasedStore, claimed outbox.Message) {
	e.Helper()
	e.poll("an instance that lost its lease finds that it owns its former claim no more", func() bool {
		_, err := e.tryClaim(e.ctx, l, 0, noMaxBytes)
		require.NoError(e, err)
		return !l.Owned(claimed.ID)
	})
}

func leaseLateOutcomesBringNothingBack(e *env) {
	a, b := e.openLeased(), e.openLeased()
	e.saveNumbered(a, "", "m", 4)
	claimed := e.await(a, numbered("m", 4)...)
	e.expire(a)
	e.settle(b, processed(e.await(b, numbered("m", 4)...)...)...)

	// The rows have gone. Whether that is worth an error is the store's choice.
	for i, outcome := range []outbox.Outcome{
		{Status: outbox.StatusProcessed},
		{Status: outbox.StatusProcessed, Archive: true},
		{Status: outbox.StatusPending, Err: errBroker},
		{Status: outbox.StatusFailed, Err: errBroker},
	} {
		outcome.ID = claimed[i].ID
		if err := a.Settle(e.ctx, outcome); err != nil {
			require.ErrorIs(e, err, outbox.ErrNotClaimed, "Settle of a message that another instance has processed meanwhile")
		}
	}
	require.Zero(e, e.deleteProcessedBefore(b, farFuture()), "archived, of messages that were deleted before")
	e.requireSetAside(a, 0, "another instance had processed them before")
	e.release(a)
	e.release(b)
	e.nothing(e.open(), "another instance has processed them, and a late outcome must not bring them back")
}

// The message that the new owner is going to try again is done, which it learns from the row that has gone.
func leaseLetsAKeyGoOn(e *env) {
	a, b := e.openLeased(), e.openLeased()
	e.save(a, keyed("k1", "k"))
	claimed := e.await(a, "k1")
	e.expire(a)
	again := e.await(b, "k1")
	e.save(a, keyed("k2", "k"))
	e.postpone(b, e.soon(), again...)
	e.settle(a, processed(claimed...)...)
	e.settle(b, processed(e.await(b, "k2")...)...)
	e.nothing(b, "k1 was processed by its former owner, and k2 by this one")
}

func leaseShowsAllWhenRegained(e *env) {
	a, b := e.openLeased(), e.openLeased()
	e.saveNumbered(a, "", "m", 4)
	claimed := e.await(a, numbered("m", 4)...)
	e.settle(a, processed(claimed[0])...)
	e.expire(a)
	taken := e.await(b, "m2", "m3", "m4")
	e.settle(b, processed(taken[0])...)
	e.postpone(b, 0, taken[1])
	e.save(b, unkeyed("m5"))
	e.awaitLoss(a, claimed[3])
	e.release(b)
	regained := e.await(a, "m3", "m4", "m5")
	require.Equal(e, 1, regained[0].Retries, "retries of m3, which another instance has tried meanwhile")
	require.True(e, a.Owned(regained[1].ID), "Owned of a message that was lost and claimed again")
	e.settle(a, processed(regained...)...)
	e.nothing(a, "all are processed")
}

// A lease was lost while messages were being published, and regained, and with it the messages. What is told of the first
// claims then must not end the second ones, or the messages would be claimed a third time while they are being published.
func leaseKeepsNewerClaims(e *env) {
	a, b := e.openLeased(), e.openLeased()
	e.saveNumbered(a, "", "m", 3)
	lost := e.await(a, numbered("m", 3)...)
	e.expire(a)
	e.await(b, numbered("m", 3)...)
	e.awaitLoss(a, lost[2])
	e.release(b)
	newer := e.await(a, numbered("m", 3)...)

	e.settle(a, outbox.Outcome{ID: lost[0].ID, Status: outbox.StatusPending, Err: errBroker})
	e.release(a, lost[1])
	for i, told := range []string{"settled as pending", "released", "not ended"} {
		require.False(e, a.Owned(lost[i].ID), "Owned of a claim under a lost lease, which was %s", told)
		require.True(e, a.Owned(newer[i].ID), "Owned of a newer claim, when one under a lost lease was %s", told)
	}
	e.nothing(a, "all are claimed")
	e.settle(a, processed(lost[2])...)
	require.False(e, a.Owned(newer[2].ID), "Owned of a message that was processed under a lost lease")
	e.settle(a, outbox.Outcome{ID: newer[0].ID, Status: outbox.StatusFailed, Err: errBroker})
	if i, ok := a.(outbox.Inspector); ok { // this ID is the one that was logged
		n, err := i.Discard(e.ctx, newer[0].ID)
		require.NoError(e, err, "Discard by the ID of a newer claim")
		require.EqualValues(e, 1, n, "messages discarded by the ID of a newer claim")
	}
	e.settle(a, processed(newer[1])...)
	e.release(a)
	e.nothing(e.open(), "all are processed")
}

// Two calls that were under way when the lease was lost, and after it was regained, return at once. What was published or set
// aside is done, whatever is told of the other.
func leaseSettlesTwoClaims(e *env) {
	a, b := e.openLeased(), e.openLeased()
	names := numbered("m", 7)
	e.saveNumbered(a, "", "m", len(names))
	lost := e.await(a, names...)
	e.expire(a)
	e.await(b, names...)
	e.awaitLoss(a, lost[len(lost)-1])
	e.release(b)
	newer := e.await(a, names...)
	of := func(m outbox.Message, status outbox.MessageStatus, archive bool) outbox.Outcome {
		o := outbox.Outcome{ID: m.ID, Status: status, Archive: archive}
		if status != outbox.StatusProcessed {
			o.Err = errBroker
		}
		return o
	}
	err := a.Settle(e.ctx,
		of(lost[0], outbox.StatusProcessed, false), of(newer[0], outbox.StatusPending, false),
		of(lost[1], outbox.StatusPending, false), of(newer[1], outbox.StatusProcessed, false),
		of(lost[2], outbox.StatusProcessed, false), of(newer[2], outbox.StatusProcessed, false),
		of(lost[3], outbox.StatusProcessed, true), of(newer[3], outbox.StatusProcessed, true),
		of(lost[4], outbox.StatusFailed, false), of(newer[4], outbox.StatusPending, false),
		of(lost[5], outbox.StatusProcessed, true), of(newer[5], outbox.StatusFailed, false),
	)
	if !errors.Is(err, outbox.ErrNotClaimed) { // which a claim may be no more when the other has been settled
		require.NoError(e, err)
	}
	for i := range 6 {
		require.False(e, a.Owned(newer[i].ID), "Owned of a message of which one claim was processed or set aside")
	}
	e.settle(a, of(lost[6], outbox.StatusPending, false), of(newer[6], outbox.StatusPending, false))
	e.drain(a, names[6])
	e.release(a)
	e.nothing(e.open(), "all others are processed or set aside")
	if i, ok := a.(outbox.Inspector); ok {
		failed, err := i.ListFailed(e.ctx, "", len(names))
		require.NoError(e, err)
		require.Len(e, failed, 1, "messages that were set aside")
		require.Equal(e, names[4], failed[0].UUID)
	}
}

func leaseIsOwned(e *env) {
	l := e.openLeased()
	e.saveNumbered(l, "", "m", 4)
	claimed := e.await(l, numbered("m", 4)...)
	for _, m := range claimed {
		require.True(e, l.Owned(m.ID), "Owned of a message that was just claimed")
	}
	for _, id := range unknownIDs() {
		require.False(e, l.Owned(id), "Owned of the unknown id %q", id)
	}
	e.settle(l, processed(claimed[0])...)
	e.postpone(l, never, claimed[1])
	e.release(l, claimed[2])
	for i, ended := range []string{"settled as processed", "settled as pending", "released"} {
		require.False(e, l.Owned(claimed[i].ID), "Owned of a message that was %s", ended)
	}
	require.True(e, l.Owned(claimed[3].ID), "Owned of a message that is still claimed")
}

func leaseIsOwnedNoMore(e *env) {
	a, b := e.openLeased(), e.openLeased()
	e.save(a, unkeyed("m"))
	claimed := e.await(a, "m")
	e.expire(a)
	again := e.await(b, "m")
	require.True(e, b.Owned(again[0].ID), "Owned of a message taken over")
	e.awaitLoss(a, claimed[0])
}

func leaseTellsObservers(e *env) {
	a, b := e.openLeased(), e.openLeased()
	recorder := &leaseRecorder{}
	ctx := outbox.ContextWithObserver(e.ctx, recorder)
	e.claimAll(a, recorder)
	for _, slot := range recorder.slots() {
		require.True(e, slot >= 0 && slot < e.features.Slots, "slot %d, of %d", slot, e.features.Slots)
	}
	require.NoError(e, a.Release(ctx), "Release without ids")
	lost, errs := recorder.losses()
	require.Equal(e, e.features.Slots, lost, "slots in LeaseLostEvents after Release without ids")
	require.NoError(e, errors.Join(errs...), "Err of the LeaseLostEvent for leases that were given up on purpose")

	e.claimAll(a, recorder)
	e.expire(a)
	e.save(b, unkeyed("m"))
	e.await(b, "m")
	e.poll("a LeaseLostEvent with an Err tells that another instance has taken the lease", func() bool {
		_, err := e.tryClaim(ctx, a, 0, noMaxBytes)
		require.NoError(e, err)
		_, errs := recorder.losses()
		return errors.Join(errs...) != nil
	})
	recorder.check(e)
}

// A consumer may take longer than a lease lasts: the store renews it by itself.
func leaseOutlastsALongClaim(e *env) {
	e.needs("Features.VirtualTime or Harness.LeaseTTL", e.features.VirtualTime || e.h.LeaseTTL > 0)
	a, b := e.openLeased(), e.openLeased()
	e.saveNumbered(a, "", "m", 3)
	claimed := e.await(a, numbered("m", 3)...)
	wait := time.Hour
	if !e.features.VirtualTime {
		wait = e.h.LeaseTTL * 3 / 2
	}
	for end := time.Now().Add(wait); time.Now().Before(end); time.Sleep(wait / 100) {
		require.Empty(e, uuids(e.fetch(b, many)), "messages of an instance that lives were given to another: leases must be "+
			"renewed")
	}
	for _, m := range claimed {
		require.True(e, a.Owned(m.ID), "Owned, after longer than a lease lasts without renewal")
	}
	e.settle(a, processed(claimed...)...)
}

// What was claimed in a term that goes on is owned, so a term must not outlast the loss of a slot.
func leaseTellsItsTerm(e *env) {
	e.needs("Features.TermReporter", e.features.TermReporter)
	l := e.openLeased()
	reporter, ok := outbox.Store(l).(outbox.TermReporter)
	require.True(e, ok, "Features.TermReporter is on, but a %T is no outbox.TermReporter", l)
	var term int64
	goesOn := func() bool {
		now, ends := reporter.LeaseTerm()
		return now == term && time.Now().Before(ends)
	}
	require.False(e, goesOn(), "the term of an instance that has no slots goes on")
	e.claimAll(l, &leaseRecorder{})
	term, _ = reporter.LeaseTerm()
	require.True(e, goesOn(), "the term of an instance that has slots has ended")
	e.release(l)
	require.False(e, goesOn(), "the term of an instance that has released its slots goes on")
	e.claimAll(l, &leaseRecorder{})
	term, _ = reporter.LeaseTerm()
	e.save(l, unkeyed("m"))
	claimed := e.await(l, "m")
	require.True(e, goesOn() && l.Owned(claimed[0].ID), "the term has ended by a claim")
	if e.features.Slots > 1 {
		e.settle(l, processed(claimed...)...)
		other := e.openLeased()
		e.poll("the term ends, since some slots go to another instance", func() bool {
			for _, each := range []outbox.LeasedStore{l, other} {
				_, err := e.tryClaim(e.ctx, each, 0, noMaxBytes)
				require.True(e, err == nil || errors.Is(err, outbox.ErrNoLease), "Claim: %v", err)
			}
			return !goesOn()
		})
		return
	}
	e.expire(l)
	e.awaitLoss(l, claimed[0])
	require.False(e, goesOn(), "the term goes on, though the claim was lost")
}

// Whoever has slots when the others have none leads, and of those that share never two do.
func leaseMakesALeader(e *env) {
	e.needs("Features.Leader", e.features.Leader)
	open := func() (outbox.LeasedStore, outbox.Leader) {
		l := e.openLeased()
		leader, ok := outbox.Store(l).(outbox.Leader)
		require.True(e, ok, "Features.Leader is on, but a %T is no outbox.Leader", l)
		return l, leader
	}
	a, ofA := open()
	b, ofB := open()
	require.False(e, ofA.Leads(), "an instance that has no slots leads")
	e.claimAll(a, &leaseRecorder{})
	require.True(e, ofA.Leads(), "an instance that has all slots does not lead")
	for range 3 { // it may get a share
		_, err := e.tryClaim(e.ctx, b, 0, noMaxBytes)
		require.NoError(e, err)
		require.False(e, ofA.Leads() && ofB.Leads(), "two instances lead")
	}
	e.release(a)
	require.False(e, ofA.Leads(), "an instance that has released its slots leads")
	e.claimAll(b, &leaseRecorder{})
	require.True(e, ofB.Leads(), "an instance that has taken all slots over does not lead")
}
