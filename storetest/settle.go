package storetest

import (
	"errors"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
)

func settlePromises() []promise {
	return []promise{
		{name: "DeletesAProcessedMessage", check: settleDeletesAProcessedMessage},
		{name: "KeepsAProcessedMessage_WhenItIsToBeArchived", check: settleArchives},
		{name: "CountsAFailedAttempt", check: settleCountsAFailedAttempt},
		{name: "LetsAPendingMessageAndItsKeyWaitForRetryAfter", check: settleHonoursRetryAfter},
		{name: "CountsNothing_WithoutAnError", check: settleCountsNothingWithoutAnError},
		{name: "KeepsACountedWait_WhenAnotherInstanceTakesOver", check: settleKeepsACountedWait},
		{name: "ForgetsAnUncountedWait_WhenAnotherInstanceTakesOver", check: settleForgetsAnUncountedWait},
		{name: "SetsAside", check: settleSetsAside},
		{name: "TakesAllKindsOfOutcomesAtOnce", check: settleTakesAllKinds},
		{name: "DoesNothing_WithoutOutcomes", check: settleDoesNothingWithoutOutcomes},
		{name: "SettlesTheOthers_WhenAnIDIsUnknown", check: settleSettlesTheOthers},
		{name: "RefusesAnUnknownStatus", check: settleRefusesAnUnknownStatus},
		{name: "MayBeRepeated", check: settleMayBeRepeated},
	}
}

func settleDeletesAProcessedMessage(e *env) {
	l := e.openLeased()
	e.saveNumbered(l, "", "m", 3)
	e.settle(l, processed(e.await(l, numbered("m", 3)...)...)...)
	require.Zero(e, e.deleteProcessedBefore(l, farFuture()), "kept of what was settled as processed without Archive")
	e.nothing(l, "they are processed")
	require.NoError(e, l.Release(e.ctx), "Release")
	e.nothing(e.open(), "they are processed")
}

func settleArchives(e *env) {
	l := e.openLeased()
	e.saveNumbered(l, "", "m", 3)
	claimed := e.await(l, numbered("m", 3)...)
	outcomes := processed(claimed...)
	outcomes[0].Archive, outcomes[2].Archive = true, true
	e.settle(l, outcomes...)
	require.EqualValues(e, 2, e.deleteProcessedBefore(l, farFuture()), "kept of three processed messages, two with "+
		"Archive")
	e.nothing(l, "they are processed")
}

func settleCountsAFailedAttempt(e *env) {
	l := e.openLeased()
	e.save(l, unkeyed("m"))
	m := e.await(l, "m")[0]
	for retries := range 15 { // beyond the maximum of MarkFailed: when to give up is the caller's policy
		require.Equal(e, retries, m.Retries, "retries: Settle as pending with an error must count one")
		e.settle(l, outbox.Outcome{ID: m.ID, Status: outbox.StatusPending, Err: errors.New("the broker said no")})
		m = e.await(l, "m")[0]
		require.Contains(e, m.LastError, "the broker said no", "LastError")
		require.Equal(e, outbox.StatusProcessing, m.Status, "status of a message claimed again")
	}
}

func settleHonoursRetryAfter(e *env) {
	const rounding = 5 * time.Millisecond // of the database's times
	l := e.openLeased()
	e.save(l, keyed("k1", "k"))
	first := e.await(l, "k1")[0]
	e.save(l, keyed("k2", "k"))
	begun := time.Now()
	e.settle(l, outbox.Outcome{ID: first.ID, Status: outbox.StatusPending, RetryAfter: e.soon(), Err: errBroker})

	var got []outbox.Message
	e.poll("a message is claimed again when its RetryAfter is over", func() bool {
		got = e.claim(l, many, noMaxBytes)
		return len(got) > 0
	})
	require.Equal(e, "k1", got[0].UUID, "a message that waits for its next attempt comes before those behind it in its "+
		"key")
	require.GreaterOrEqual(e, time.Since(begun)+rounding, e.soon(), "the wait before a message was claimed again, "+
		"against its "+
		"RetryAfter")
}

func settleCountsNothingWithoutAnError(e *env) {
	l := e.openLeased()
	e.save(l, keyed("k1", "k"))
	first := e.await(l, "k1")[0]
	e.settle(l, outbox.Outcome{ID: first.ID, Status: outbox.StatusPending, Err: errors.New("counted")})
	first = e.await(l, "k1")[0]
	e.save(l, keyed("k2", "k"))
	e.settle(l, outbox.Outcome{ID: first.ID, Status: outbox.StatusPending, RetryAfter: e.soon()})
	again := e.awaitFirst(l, "k1")
	require.Equal(e, 1, again.Retries, "a pending message without an error was not at fault: nothing is counted")
	require.Equal(e, "counted", again.LastError, "a pending message without an error keeps the one of its last attempt")

	e.settle(l, outbox.Outcome{ID: again.ID, Status: outbox.StatusPending, RetryAfter: never})
	e.nothing(l, "a pending message waits for its RetryAfter, with or without an error, and its key behind it")
}

func settleKeepsACountedWait(e *env) {
	l := e.openLeased()
	e.save(l, keyed("k1", "k"), unkeyed("u1"))
	claimed := e.await(l, "k1", "u1")
	e.save(l, keyed("k2", "k"))
	e.postpone(l, never, claimed[0])
	e.postpone(l, e.soon(), claimed[1])
	require.NoError(e, l.Release(e.ctx), "Release")

	other := e.openLeased()
	// The end of u1's wait proves that the other instance knows of retries at all.
	require.Equal(e, 1, e.await(other, "u1")[0].Retries, "retries of a message that another instance has tried")
	e.nothing(other, "k1 waits for its next attempt, which its other instance has counted, and k2 is behind it")
}

func settleForgetsAnUncountedWait(e *env) {
	l := e.openLeased()
	e.save(l, keyed("k1", "k"))
	first := e.await(l, "k1")[0]
	e.save(l, keyed("k2", "k"))
	e.settle(l, outbox.Outcome{ID: first.ID, Status: outbox.StatusPending, RetryAfter: never})
	require.NoError(e, l.Release(e.ctx), "Release")
	again := e.awaitFirst(e.openLeased(), "k1")
	require.Zero(e, again.Retries, "a pending message without an error was not at fault: nothing is counted")
}

func settleSetsAside(e *env) {
	l := e.openLeased()
	e.save(l, keyed("k1", "k"))
	first := e.await(l, "k1")[0]
	e.save(l, keyed("k2", "k"))
	e.settle(l, outbox.Outcome{ID: first.ID, Status: outbox.StatusFailed, Err: errors.New("too large")})
	require.Equal(e, []string{"k2"}, uuids(e.arrivals(l)), "a message set aside leaves the order of its key")
	require.NoError(e, l.Release(e.ctx), "Release")
	require.Equal(e, []string{"k2"}, uuids(e.arrivals(e.open())), "a message set aside is not published by others either")
	for _, m := range e.requireSetAside(l, 1, "k1 was") {
		require.Equal(e, "k1", m.UUID, "messages set aside")
		require.Contains(e, m.LastError, "too large", "LastError of a message set aside")
	}
}

func settleTakesAllKinds(e *env) {
	l := e.openLeased()
	names := []string{"deleted", "archived", "counted", "uncounted", "set aside", "claimed"}
	for _, uuid := range names {
		e.save(l, unkeyed(uuid))
	}
	m := e.await(l, names...)
	e.settle(l,
		outbox.Outcome{ID: m[0].ID, Status: outbox.StatusProcessed},
		outbox.Outcome{ID: m[1].ID, Status: outbox.StatusProcessed, Archive: true},
		outbox.Outcome{ID: m[2].ID, Status: outbox.StatusPending, Err: errBroker},
		outbox.Outcome{ID: m[3].ID, Status: outbox.StatusPending},
		outbox.Outcome{ID: m[4].ID, Status: outbox.StatusFailed, Err: errBroker},
	)
	require.EqualValues(e, 1, e.deleteProcessedBefore(l, farFuture()), "archived messages")
	e.requireSetAside(l, 1, "one of six was settled as failed")
	again := e.await(l, "counted", "uncounted")
	require.Equal(e, 1, again[0].Retries, "retries of the pending message with an error")
	require.Zero(e, again[1].Retries, "retries of the pending message without an error")
	require.True(e, l.Owned(m[5].ID), "a message without an outcome is still claimed")
	e.nothing(l, "the others are claimed, processed or set aside")
}

func settleDoesNothingWithoutOutcomes(e *env) {
	l := e.openLeased()
	e.settle(l)
	e.save(l, unkeyed("m"))
	claimed := e.await(l, "m")
	e.settle(l)
	require.True(e, l.Owned(claimed[0].ID), "a claim after Settle without outcomes")
	e.nothing(l, "it is claimed")
}

func settleSettlesTheOthers(e *env) {
	l := e.openLeased()
	e.saveNumbered(l, "", "m", 3)
	claimed := e.await(l, numbered("m", 3)...)
	outcomes := processed(claimed[:2]...)
	for _, id := range unknownIDs() {
		outcomes = append(outcomes, outbox.Outcome{ID: id, Status: outbox.StatusProcessed},
			outbox.Outcome{ID: id, Status: outbox.StatusPending, Err: errBroker},
			outbox.Outcome{ID: id, Status: outbox.StatusFailed, Err: errBroker})
	}
	outcomes = append(outcomes, processed(claimed[2])...)
	require.ErrorIs(e, l.Settle(e.ctx, outcomes...), outbox.ErrNotClaimed, "Settle with unknown ids among others")
	require.NoError(e, l.Release(e.ctx), "Release")
	e.nothing(e.open(), "Settle must settle all claimed messages of a call in which some ids are unknown")
}

func settleRefusesAnUnknownStatus(e *env) {
	l := e.openLeased()
	e.save(l, unkeyed("m"))
	claimed := e.await(l, "m")
	for _, status := range []outbox.MessageStatus{"", outbox.StatusProcessing, "done"} {
		require.Error(e, l.Settle(e.ctx, outbox.Outcome{ID: claimed[0].ID, Status: status}), "Settle as %q", status)
	}
	require.NoError(e, l.Release(e.ctx), "Release")
	e.await(e.open(), "m")
}

func settleMayBeRepeated(e *env) {
	l := e.openLeased()
	e.saveNumbered(l, "", "m", 3)
	m := e.await(l, numbered("m", 3)...)
	outcomes := []outbox.Outcome{
		{ID: m[0].ID, Status: outbox.StatusProcessed},
		{ID: m[1].ID, Status: outbox.StatusPending, RetryAfter: e.soon(), Err: errBroker},
		{ID: m[2].ID, Status: outbox.StatusFailed, Err: errBroker},
	}
	e.settle(l, outcomes...)
	for range 2 {
		require.ErrorIs(e, l.Settle(e.ctx, outcomes...), outbox.ErrNotClaimed, "the same Settle again, which ended the "+
			"claims")
	}
	require.Equal(e, 1, e.await(l, "m2")[0].Retries, "retries after the same outcome three times")
	e.requireSetAside(l, 1, "the same outcome was given three times")
}
