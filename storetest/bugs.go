package storetest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
)

// bugPromises are bugs that outboxes were shipped with.
func bugPromises() []promise {
	return []promise{
		{name: "ClaimedRowsStrandedByACrash", check: bugClaimsStrandedByACrash},
		{name: "ClaimedRowsStrandedByMarkingOnACancelledContextAtShutdown", check: bugClaimsStrandedAtShutdown},
		{name: "ABatchAcknowledgedWholeAlthoughProcessingBrokeOffInTheMiddle", check: bugBatchAcknowledgedWhole},
		{name: "ARetryDelayThatIsNeverRead", check: bugRetryDelayNeverRead},
		{name: "ReturningWithoutOrder", check: bugReturningWithoutOrder},
		{name: "AFailedMessageOvertakenByLaterOnesOfItsKey", check: bugFailedMessageOvertaken},
		{name: "ABadHeadersRowThatBlocksOrStrandsItsBatch", check: bugBadHeadersRow},
		{name: "TheCallersMessageIDReplaced", check: bugMessageIDReplaced},
		{name: "SkipLockedOutsideATransaction", check: bugSkipLockedOutsideATransaction},
		{name: "MessagesDeletedAtTheMaximumOfAttempts", check: bugMessagesDeletedAtTheMaximum},
		{name: "ADedupKeyRecordedBeforeTheHandlerSucceeds", check: bugDedupKeyRecordedTooEarly},
		{name: "AnEmptyUUIDCountedAsADuplicate", check: bugEmptyUUIDIsADuplicate},
		{name: "AContextCancelledByATimeoutReusedByTheNextRetry", check: bugCancelledContextReused},
		{name: "CloseDuringPublishRacing", check: bugCloseDuringPublish, alone: true},
		{name: "ANilOrTypedNilTxSilentlyAutocommitting", check: bugTypedNilTx},
		{name: "IDsGivenAgain", check: bugIDsGivenAgain},
	}
}

func bugClaimsStrandedByACrash(e *env) {
	s := e.open()
	e.saveNumbered(s, "", "m", 3)
	e.save(s, keyed("k1", "k"))
	e.await(s, "m1", "m2", "m3", "k1")
	e.expire(s)
	e.await(e.open(), "m1", "m2", "m3", "k1")
}

func bugClaimsStrandedAtShutdown(e *env) {
	s := e.open()
	e.saveNumbered(s, "", "m", 4)
	claimed := e.await(s, numbered("m", 4)...)
	cancelled, cancel := context.WithCancel(e.ctx)
	cancel()
	var left []string
	if err := s.MarkProcessed(cancelled, ids(claimed[:2])...); err != nil {
		left = append(left, "m1", "m2")
	}
	if err := s.MarkFailed(cancelled, claimed[2].ID, errBroker); err != nil {
		left = append(left, "m3")
	}
	left = append(left, "m4")
	e.handOver(s)
	other := e.open()
	got := e.arrivals(other) // m3 may wait for its backoff
	require.Subset(e, uuids(got), left, "what could not be marked at a shutdown must be published by another instance")
	require.NotContains(e, uuids(e.arrivals(other)), "m4", "m4 is claimed")
}

func bugBatchAcknowledgedWhole(e *env) {
	s := e.open()
	e.saveNumbered(s, "", "m", 6)
	claimed := e.await(s, numbered("m", 6)...)
	e.done(s, claimed[0], claimed[1], claimed[4])
	e.handOver(s)
	e.await(e.open(), "m3", "m4", "m6") // fails if one of the others comes
}

func bugRetryDelayNeverRead(e *env) {
	e.needs("Features.MaxRetries of 5 or more", e.features.MaxRetries >= 5)
	outage := 6 * time.Second
	if !e.features.VirtualTime {
		outage = 500 * time.Millisecond
	}
	s := e.open()
	names := e.saveNumbered(s, "", "m", 8)
	attempts := map[string]int{}
	for end := time.Now().Add(outage); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		for _, m := range e.fetch(s, many) {
			attempts[m.UUID]++
			require.NoError(e, s.MarkFailed(e.ctx, m.ID, errBroker), "MarkFailed")
		}
	}
	usedUp := 0
	for _, uuid := range names {
		if attempts[uuid] >= e.features.MaxRetries {
			usedUp++
		}
	}
	require.Less(e, usedUp, len(names), "an outage of %v has used up all attempts of all messages: each must wait for "+
		"its "+
		"backoff", outage)
}

func bugReturningWithoutOrder(e *env) {
	const total = 200
	s := e.open()
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // guards nothing
	want := map[string][]string{}
	var all []string
	var msgs []outbox.Message
	for i := range total {
		m := keyed(fmt.Sprint(i), fmt.Sprint("key", random.IntN(10)))
		msgs = append(msgs, m)
		want[m.Key] = append(want[m.Key], m.UUID)
		all = append(all, m.UUID)
	}
	e.save(s, msgs...)
	got := map[string][]string{}
	for _, m := range e.drain(s, all...) {
		got[m.Key] = append(got[m.Key], m.UUID)
	}
	require.Equal(e, want, got, "messages of a key must be returned in order, whatever the plan of the query")
}

func bugFailedMessageOvertaken(e *env) {
	s := e.open()
	e.save(s, keyed("k1", "k"))
	first := e.await(s, "k1")[0]
	e.saveNumbered(s, "k", "later k", 3)
	require.NoError(e, s.MarkFailed(e.ctx, first.ID, errBroker), "MarkFailed")
	e.saveNumbered(s, "k", "latest k", 3)
	want := append([]string{"k1"}, append(numbered("later k", 3), numbered("latest k", 3)...)...)
	require.Equal(e, want, uuids(e.drain(s, want...)), "order of a key whose first message failed once")
}

func bugBadHeadersRow(e *env) {
	e.needs("Harness.Damage", e.h.Damage != nil)
	s := e.open()
	e.save(s, unkeyed("u1"), unkeyed("bad"), unkeyed("u2"), keyed("k1", "k"), keyed("bad of l", "l"))
	e.h.Damage(e.T, "bad")
	e.h.Damage(e.T, "bad of l")
	good := map[string]bool{}
	bad := map[string]bool{}
	e.poll("all messages around two that cannot be decoded are returned", func() bool {
		for _, m := range e.fetch(s, many) {
			if m.Status == outbox.StatusFailed {
				bad[m.UUID] = true
				require.NoError(e, s.MarkFailed(e.ctx, m.ID, errors.New(m.LastError)), "MarkFailed of what cannot be decoded")
				continue
			}
			good[m.UUID] = true
			e.done(s, m)
		}
		return len(good) >= 3
	})
	require.Equal(e, map[string]bool{"u1": true, "u2": true, "k1": true}, good, "messages returned as good ones")
	e.poll("what cannot be decoded is returned as failed, or set aside", func() bool {
		if i, ok := s.(outbox.Inspector); ok {
			n, err := i.CountFailed(e.ctx)
			require.NoError(e, err, "CountFailed")
			if n == 2 {
				return true
			}
		}
		for _, m := range e.fetch(s, many) {
			bad[m.UUID] = true
		}
		return bad["bad"] && bad["bad of l"]
	})
}

func bugMessageIDReplaced(e *env) {
	s := e.open()
	e.save(s, unkeyed("mine"))
	arrived := e.arrivals(s)
	require.Equal(e, []string{"mine"}, uuids(arrived), "consumers deduplicate on the caller's UUID, which must stay")
	e.done(s, arrived...)
	if i, ok := s.(outbox.Inspector); ok {
		e.saveFailed(s, unkeyed("mine too"))
		e.requeue(i, 1, ids(e.requireFailed(i, 1, "one message was"))...)
		require.Equal(e, []string{"mine too"}, uuids(e.arrivals(s)), "a requeued message must keep its UUID")
	}
}

func bugSkipLockedOutsideATransaction(e *env) {
	const total, relays = 60, 4
	s := e.open()
	e.saveNumbered(s, "", "m", total)
	var mu sync.Mutex
	published := map[string]int{}
	e.together(relays, func(int) error {
		for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Millisecond) {
			msgs, err := e.tryFetch(s, 5)
			if err != nil {
				return err
			}
			failed := func(m outbox.Message) bool { return m.Retries == 0 && m.ID[len(m.ID)-1] == '7' } // some, once
			mu.Lock()
			for _, m := range msgs {
				if !failed(m) {
					published[m.UUID]++
				}
			}
			enough := len(published) == total
			mu.Unlock()
			time.Sleep(time.Millisecond) // for the broker; others may fetch meanwhile
			errs := []error{s.MarkProcessed(e.ctx, ids(slices.DeleteFunc(slices.Clone(msgs), failed))...)}
			for _, m := range msgs {
				if failed(m) {
					errs = append(errs, s.MarkFailed(e.ctx, m.ID, errBroker))
				}
			}
			if err := errors.Join(errs...); err != nil || enough {
				return err
			}
		}
		return errors.New("FetchPending does not return all messages")
	})
	for uuid, n := range published {
		require.Equal(e, 1, n, "publications of message %s by relays that fetch and mark at once", uuid)
	}
}

func bugMessagesDeletedAtTheMaximum(e *env) {
	s, i := e.openInspector()
	e.save(s, unkeyed("m"))
	m := e.raise(s, e.features.MaxRetries-1, e.await(s, "m")...)[0]
	require.NoError(e, s.MarkFailed(e.ctx, m.ID, errors.New("the last error")), "MarkFailed at the maximum")
	e.deleteProcessedBefore(s, farFuture())
	failed := e.requireFailed(i, 1, "a message at the maximum of its attempts is kept, for somebody to look at it")
	require.Contains(e, failed[0].LastError, "the last error", "LastError of a message set aside")
	e.requeue(i, 1, ids(failed)...)
	e.await(s, "m")
}

func bugDedupKeyRecordedTooEarly(e *env) {
	s, p := e.openProcessed()
	for delivery, succeeds := range []bool{false, false, true} {
		tx := e.begin(s)
		require.True(e, e.mark(p, tx.Handle(), "group", "m"), "isNew in delivery %d, after handlers that failed", delivery+1)
		if succeeds {
			e.commit(tx)
		} else {
			e.rollback(tx)
		}
	}
	require.False(e, e.mark(p, nil, "group", "m"), "isNew after a handler that succeeded")
}

func bugEmptyUUIDIsADuplicate(e *env) {
	s := e.open()
	e.save(s, unkeyed(""))
	tx := e.begin(s)
	e.saveIn(s, tx, unkeyed(""), unkeyed(""))
	e.commit(tx)
	require.Len(e, e.arrivals(s), 3, "messages saved with an empty UUID are different messages")
}

func bugCancelledContextReused(e *env) {
	s := e.open()
	e.saveNumbered(s, "", "m", 2)
	claimed := e.await(s, "m1", "m2")
	cancelled, cancel := context.WithCancel(e.ctx)
	cancel()
	err := s.MarkProcessed(cancelled, claimed[0].ID)
	again := s.MarkProcessed(e.ctx, claimed[0].ID)
	if err == nil || again != nil { // the first may have had its effect
		e.requireNotClaimed(again, "MarkProcessed of a message that is processed")
	}
	_, _ = s.FetchPending(cancelled, many)
	_, _ = s.DeleteProcessedBefore(cancelled, farFuture())
	e.nothing(s, "m1 is processed, and m2 claimed")
	e.done(s, claimed[1])
	e.handOver(s)
	e.nothing(e.open(), "both are processed")
}

func bugCloseDuringPublish(e *env) {
	const writers, each = 4, 10
	s, c := e.openCloser()
	other := e.open()
	var mu sync.Mutex
	var saved []string
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			for i := range each {
				uuid := fmt.Sprintf("%d-%d", w, i)
				if s.Save(e.ctx, nil, unkeyed(uuid)) == nil {
					mu.Lock()
					saved = append(saved, uuid)
					mu.Unlock()
				}
				_, _ = s.FetchPending(e.ctx, 1) // ErrClosed, sooner or later
			}
		})
	}
	all.Go(func() {
		if err := c.Close(); err != nil {
			e.Errorf("Close during Save and FetchPending: %v", err)
		}
	})
	e.within("Close during Save and FetchPending", all.Wait)
	require.NoError(e, c.Close(), "Close of a store that was closed")
	if e.features.Slots == 0 { // its claims end with its process only
		return
	}
	e.await(other, saved...)
}

func bugTypedNilTx(e *env) {
	s := e.open()
	tx := e.begin(s)
	handle := reflect.TypeOf(tx.Handle())
	e.rollback(tx)
	e.needs("Harness.Begin to return a pointer as the handle", handle.Kind() == reflect.Pointer)
	err := s.Save(e.ctx, reflect.Zero(handle).Interface(), unkeyed("typed nil"))
	require.ErrorIs(e, err, outbox.ErrInvalidTx, "Save in a nil %s: only a plain nil means a transaction of the "+
		"store's own",
		handle)
	e.nothing(s, "there was no transaction to write them in")
}

func bugIDsGivenAgain(e *env) {
	s := e.open()
	last := ""
	for i, end := range []func(m outbox.Message){
		func(m outbox.Message) { e.done(s, m); e.deleteProcessedBefore(s, farFuture()) },
		func(m outbox.Message) {
			if l, ok := s.(outbox.LeasedStore); ok {
				e.settle(l, processed(m)...)
			}
		},
		func(m outbox.Message) {
			e.setAside(s, m)
			if i, ok := s.(outbox.Inspector); ok {
				_, err := i.Discard(e.ctx, m.ID)
				require.NoError(e, err, "Discard")
			}
		},
		func(outbox.Message) {},
	} {
		uuid := numbered("m", i+1)[i]
		e.save(s, unkeyed(uuid))
		m := e.await(s, uuid)[0]
		require.True(e, last == "" || idLess(last, m.ID), "a message got id %s when %s had been given already: ids must "+
			"ascend, "+
			"also when the message with the highest one is deleted", m.ID, last)
		if last != "" { // a late outcome for the former id must not end this message
			_ = s.MarkProcessed(e.ctx, last)
		}
		last = m.ID
		end(m)
	}
	e.handOver(s)
	e.await(e.open(), "m4")
}
