package storetest

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
)

func releasePromises() []promise {
	return []promise{
		{name: "LetsMessagesBeClaimedAgainAtOnce", check: releaseLetsMessagesBeClaimedAgain},
		{name: "LeavesOtherClaimsAlone", check: releaseLeavesOtherClaimsAlone},
		{name: "KeepsTheOrderOfAKey", check: releaseKeepsTheOrderOfAKey},
		{name: "EndsTheClaim", check: releaseEndsTheClaim},
		{name: "IgnoresUnknownIDs", check: releaseIgnoresUnknownIDs},
		{name: "WithoutIDs_HandsOverAtOnce", check: releaseHandsOverAtOnce},
		{name: "WithoutIDs_EndsAllClaims", check: releaseEndsAllClaims},
		{name: "WithoutIDs_LetsTheInstanceClaimAgain", check: releaseLetsTheInstanceClaimAgain},
		{name: "WithoutIDs_KeepsLaterClaims_WhenOutcomesOfFormerOnesComeLate", check: releaseKeepsLaterClaims},
		{name: "WithoutIDs_MayBeRepeated_AfterAnError", check: releaseMayBeRepeated},
		{name: "WithoutIDs_MayMeetAClaim", check: releaseMayMeetAClaim, alone: true},
	}
}

func (e *env) release(l outbox.LeasedStore, msgs ...outbox.Message) {
	e.Helper()
	require.NoError(e, l.Release(e.ctx, ids(msgs)...), "Release")
}

func releaseLetsMessagesBeClaimedAgain(e *env) {
	l := e.openLeased()
	e.saveNumbered(l, "", "m", 3)
	claimed := e.await(l, numbered("m", 3)...)
	e.release(l, claimed...)
	for _, m := range e.await(l, numbered("m", 3)...) {
		require.Zero(e, m.Retries, "retries of a message that was released: Release counts nothing")
		require.Empty(e, m.LastError, "LastError of a message that was released")
		require.Equal(e, m.UUID, string(m.Payload), "the payload of a message that was released")
	}
}

func releaseLeavesOtherClaimsAlone(e *env) {
	l := e.openLeased()
	e.saveNumbered(l, "", "m", 3)
	claimed := e.await(l, numbered("m", 3)...)
	e.release(l, claimed[1])
	require.Equal(e, []string{"m2"}, uuids(e.arrivals(l)), "only m2 was released")
	require.True(e, l.Owned(claimed[0].ID), "m1 was not released")
	e.settle(l, processed(claimed...)...)
	e.nothing(l, "all are processed")
}

func releaseKeepsTheOrderOfAKey(e *env) {
	l := e.openLeased()
	want := e.saveNumbered(l, "k", "k", 6)
	var got []string
	for len(got) < len(want) { // settle the first of what comes, release the rest, last first
		var msgs []outbox.Message
		e.poll("Claim returns the rest of a key", func() bool {
			msgs = e.claim(l, many, noMaxBytes)
			return len(msgs) > 0
		})
		got = append(got, msgs[0].UUID)
		for i := len(msgs) - 1; i > 0; i-- {
			e.release(l, msgs[i])
		}
		require.Empty(e, e.claim(l, many, noMaxBytes), "a key was claimed while its first message is")
		if len(got) == 2 { // the first one can be released, too
			e.release(l, msgs[0])
			got = got[:1]
			msgs = []outbox.Message{e.awaitFirst(l, want[1])}
			got = append(got, msgs[0].UUID)
		}
		e.settle(l, processed(msgs[0])...)
	}
	require.Equal(e, want, got, "messages of one key come in order, whatever was released")
}

func releaseEndsTheClaim(e *env) {
	l := e.openLeased()
	e.save(l, unkeyed("m"))
	claimed := e.await(l, "m")
	e.release(l, claimed...)
	require.False(e, l.Owned(claimed[0].ID), "Owned of a message that was released")
	for _, status := range []outbox.MessageStatus{outbox.StatusProcessed, outbox.StatusPending, outbox.StatusFailed} {
		err := l.Settle(e.ctx, outbox.Outcome{ID: claimed[0].ID, Status: status, Err: errBroker})
		require.ErrorIs(e, err, outbox.ErrNotClaimed, "Settle as %s of a message that was released", status)
	}
	require.Zero(e, e.await(l, "m")[0].Retries, "retries of a message that was released before it was settled")
}

func releaseIgnoresUnknownIDs(e *env) {
	l := e.openLeased()
	e.saveNumbered(l, "", "m", 2)
	claimed := e.await(l, "m1", "m2")
	e.settle(l, processed(claimed[0])...)
	unknown := append(unknownIDs(), claimed[0].ID)
	require.NoError(e, l.Release(e.ctx, append(unknown, claimed[1].ID)...), "Release of unknown ids and a claimed one")
	e.await(l, "m2")
}

func releaseHandsOverAtOnce(e *env) {
	a, b := e.openLeased(), e.openLeased()
	e.saveNumbered(a, "k", "k", 3)
	e.save(a, unkeyed("u"))
	require.Subset(e, uuids(e.arrivals(a)), []string{"k1", "u"}, "claimed by the first instance")
	if e.features.Slots == 1 {
		_, err := b.Claim(e.ctx, many, noMaxBytes)
		require.ErrorIs(e, err, outbox.ErrNoLease, "Claim while another instance holds the only lease")
	}
	e.release(a)
	if e.features.Slots == 1 {
		_, err := b.Claim(e.ctx, 0, noMaxBytes)
		require.NoError(e, err, "Claim right after the other instance has given up the lease")
	}
	got := uuids(e.drain(b, "k1", "k2", "k3", "u"))
	requireBefore(e, got, "k1", "k2")
	requireBefore(e, got, "k2", "k3")
}

func releaseEndsAllClaims(e *env) {
	l := e.openLeased()
	e.saveNumbered(l, "", "m", 3)
	claimed := e.await(l, numbered("m", 3)...)
	require.NoError(e, l.Release(e.ctx), "Release without ids")
	for _, m := range claimed {
		require.False(e, l.Owned(m.ID), "Owned of a claim that Release without ids has ended")
		err := l.Settle(e.ctx, processed(m)...)
		require.ErrorIs(e, err, outbox.ErrNotClaimed, "Settle of a claim that Release without ids has ended")
	}
	require.NoError(e, l.Release(e.ctx), "Release without ids when there is nothing to release")
	e.await(e.open(), numbered("m", 3)...)
}

func releaseLetsTheInstanceClaimAgain(e *env) {
	l := e.openLeased()
	e.saveNumbered(l, "", "m", 2)
	e.await(l, "m1", "m2")
	e.release(l)
	claimed := e.await(l, "m1", "m2")
	require.True(e, l.Owned(claimed[0].ID), "Owned of a message that was claimed again")
	e.settle(l, processed(claimed...)...)
}

// A call may still be publishing what it was given before.
func releaseKeepsLaterClaims(e *env) {
	l := e.openLeased()
	e.saveNumbered(l, "", "m", 4)
	former := e.await(l, numbered("m", 4)...)
	e.release(l)
	later := e.await(l, numbered("m", 4)...)
	for i, status := range []outbox.MessageStatus{outbox.StatusProcessed, outbox.StatusPending, outbox.StatusFailed} {
		err := l.Settle(e.ctx, outbox.Outcome{ID: former[i].ID, Status: status, Err: errBroker})
		require.ErrorIs(e, err, outbox.ErrNotClaimed, "Settle as %s of a claim that Release without ids has ended, when the "+
			"message is claimed again", status)
	}
	e.release(l, former[3])
	for i := range later {
		require.False(e, l.Owned(former[i].ID), "Owned of a claim that Release without ids has ended")
		require.True(e, l.Owned(later[i].ID), "Owned of a later claim, when an outcome of a former one came late")
	}
	e.nothing(l, "all are claimed")
	e.settle(l, processed(later...)...)
}

// What could not be given up must be given up by the next try: a shutdown that was cut short is repeated.
func releaseMayBeRepeated(e *env) {
	l, other := e.openLeased(), e.openLeased()
	e.saveNumbered(l, "", "m", 2)
	e.await(l, "m1", "m2")
	cancelled, cancel := context.WithCancel(e.ctx)
	cancel()
	first := l.Release(cancelled)
	e.release(l)
	if e.features.Slots == 1 {
		_, err := other.Claim(e.ctx, 0, noMaxBytes)
		require.NoError(e, err, "Claim after the other instance has given up the lease by a Release that returned no "+
			"error; one "+
			"with a cancelled context before had returned: %v", first)
	}
	e.await(other, "m1", "m2")
}

// A Forwarder that stops and one that starts may meet at the store.
func releaseMayMeetAClaim(e *env) {
	const relays, rounds = 3, 100
	l := e.openLeased()
	e.saveNumbered(l, "", "m", 5)
	errs := make([]error, relays+1)
	var all sync.WaitGroup
	for i := range relays {
		all.Go(func() {
			for range rounds {
				msgs, err := e.tryClaim(e.ctx, l, 2, noMaxBytes)
				errs[i] = errors.Join(errs[i], err)
				for _, m := range msgs {
					_ = l.Owned(m.ID)
					errs[i] = errors.Join(errs[i], l.Release(e.ctx, m.ID))
				}
			}
		})
	}
	all.Go(func() {
		for range rounds {
			if err := l.Release(e.ctx); err != nil {
				errs[relays] = fmt.Errorf("call Release without ids: %w", err)
			}
		}
	})
	e.within("Release without ids during Claim", all.Wait)
	require.NoError(e, errors.Join(errs...))
	e.release(l)
	e.await(e.open(), numbered("m", 5)...)
}
