package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
)

func fetchPromises() []promise {
	return []promise{
		{name: "ReturnsAtMostLimitMessages", check: fetchReturnsAtMostLimit},
		{name: "ReturnsNothing_WhenTheLimitIsNotPositive", check: fetchReturnsNothingWithoutLimit},
		{name: "ClaimsAMessageOnce_WithinAnInstance", check: fetchClaimsOnceWithinAnInstance},
		{name: "ClaimsAMessageOnce_AmongInstances", check: fetchClaimsOnceAmongInstances},
		{name: "ClaimsAMessageOnce_AmongManyGoroutines", check: fetchClaimsOnceAmongGoroutines},
		{name: "StrandsNothing_WhenItsContextIsCancelled", check: fetchStrandsNothing},
		{name: "ReturnsAKeyInOrder", check: fetchReturnsAKeyInOrder},
		{name: "ReturnsAKeyInOrder_AcrossTopics", check: fetchReturnsAKeyInOrderAcrossTopics},
		{name: "HoldsAKeyBack_WhileOneOfItIsClaimed", check: fetchHoldsAKeyBackWhileClaimed},
		{name: "HoldsAKeyBack_WhileItsFirstWaits", check: fetchHoldsAKeyBackWhileItsFirstWaits},
		{name: "LetsNoOtherKeyWait", check: fetchLetsNoOtherKeyWait},
		{name: "LetsNoOtherKeyWait_BehindALongOne", check: fetchLetsNoOtherKeyWaitBehindALongOne},
		{name: "TellsKeysApart", check: fetchTellsKeysApart},
		{name: "GivesMessagesWithoutAKeyIndependently", check: fetchGivesUnkeyedIndependently},
		{name: "HoldsADelayedMessageUntilItIsDue", check: fetchHoldsADelayedMessage},
		{name: "GivesADelayedMessageItsPlace_WhenItIsDue", check: fetchGivesADelayedMessageItsPlace},
		{name: "GivesADelayedMessageItsPlace_BeforeOneThatWaits", check: fetchGivesADelayedMessageItsPlaceBeforeAWait},
		{name: "GivesADelayedMessageItsPlace_BeforeOneThatIsKnown", check: fetchGivesADelayedMessageItsPlaceBeforeOthers},
		{name: "SeesNothingOfAnOpenTransaction", check: fetchSeesNothingOfAnOpenTransaction},
	}
}

func (e *env) saveNumbered(s outbox.Store, key, prefix string, n int) []string {
	e.Helper()
	names := numbered(prefix, n)
	msgs := make([]outbox.Message, n)
	for i, uuid := range names {
		msgs[i] = keyed(uuid, key)
	}
	e.save(s, msgs...)
	return names
}

func fetchReturnsAtMostLimit(e *env) {
	s := e.open()
	e.saveNumbered(s, "", "m", 10)
	var got []outbox.Message
	e.poll("FetchPending with a limit of 3 returns ten messages, in at least four calls", func() bool {
		got = append(got, e.fetch(s, 3)...) // fetch checks the limit
		return len(got) == 10
	})
	e.nothing(s, "ten messages were saved, and ten are claimed")
}

func fetchReturnsNothingWithoutLimit(e *env) {
	s := e.open()
	e.done(s, e.arrivals(s)...) // whatever a store has to prepare is done
	e.save(s, unkeyed("a"))
	for _, limit := range []int{0, -1} {
		require.Empty(e, e.fetch(s, limit), "FetchPending with limit %d", limit)
	}
	e.await(s, "a")
}

func fetchClaimsOnceWithinAnInstance(e *env) {
	s := e.open()
	e.saveNumbered(s, "", "m", 5)
	e.await(s, numbered("m", 5)...)
	e.nothing(s, "all messages are claimed, and none was marked as failed")
}

func fetchClaimsOnceAmongInstances(e *env) {
	a, b, c := e.open(), e.open(), e.open()
	want := append(e.saveNumbered(a, "", "m", 20), e.saveNumbered(a, "k", "k", 1)...)
	e.awaitFrom([]outbox.Store{a, b, c}, want...) // fails for a message that comes twice
	require.Empty(e, uuids(e.arrivals(a, b, c)), "another instance was given messages that are claimed")
}

func fetchClaimsOnceAmongGoroutines(e *env) {
	const total = 120
	instances := []outbox.Store{e.open(), e.open(), e.open()}
	e.saveNumbered(instances[0], "", "m", total)
	var (
		mu      sync.Mutex
		claimed = map[string]int{}
	)
	deadline := time.Now().Add(patience)
	e.together(3*len(instances), func(i int) error {
		for time.Now().Before(deadline) {
			msgs, err := e.tryFetch(instances[i%len(instances)], 7)
			if err != nil {
				return err
			}
			mu.Lock()
			for _, m := range msgs {
				claimed[m.UUID]++
			}
			enough := len(claimed) == total
			mu.Unlock()
			if enough {
				return nil
			}
			time.Sleep(time.Millisecond)
		}
		return fmt.Errorf("not all of %d messages were claimed within %v", total, patience)
	})
	for uuid, n := range claimed {
		require.Equal(e, 1, n, "message %s was claimed %d times by goroutines that fetched at once", uuid, n)
	}
	require.Empty(e, uuids(e.arrivals(instances[0], instances[1:]...)), "claimed messages were returned again")
}

func fetchStrandsNothing(e *env) {
	s := e.open()
	e.done(s, e.arrivals(s)...)
	e.saveNumbered(s, "", "m", 5)
	cancelled, cancel := context.WithCancel(e.ctx)
	cancel()
	want := numbered("m", 5)
	for range 3 {
		msgs, err := s.FetchPending(cancelled, 2)
		require.False(e, err != nil && len(msgs) > 0, "FetchPending returned messages and an error: %v", err)
		for _, m := range msgs { // a store may finish what it can finish
			want = slices.DeleteFunc(want, func(uuid string) bool { return uuid == m.UUID })
		}
	}
	e.await(s, want...)
}

func fetchReturnsAKeyInOrder(e *env) {
	const keys, each = 4, 15
	s := e.open()
	want := map[string][]string{}
	var all []string
	for i := range each { // interleaved, one transaction each
		for k := range keys {
			key := fmt.Sprintf("key%d", k)
			uuid := fmt.Sprintf("%s-%d", key, i)
			e.save(s, keyed(uuid, key))
			want[key] = append(want[key], uuid)
			all = append(all, uuid)
		}
	}
	got := map[string][]string{}
	for _, m := range e.drain(s, all...) {
		got[m.Key] = append(got[m.Key], m.UUID)
	}
	require.Equal(e, want, got, "messages of one key must come in the order in which they were saved")
}

func fetchReturnsAKeyInOrderAcrossTopics(e *env) {
	s := e.open()
	want := numbered("k", 9)
	for i, uuid := range want {
		m := keyed(uuid, "k")
		m.Topic = []string{"zebra", "apple", "mango"}[i%3]
		e.save(s, m)
	}
	require.Equal(e, want, uuids(e.drain(s, want...)), "messages of one key have one order, whatever their topics")
}

func fetchHoldsAKeyBackWhileClaimed(e *env) {
	s, other := e.open(), e.open()
	e.save(s, keyed("k1", "k"))
	first := e.await(s, "k1")
	e.save(s, keyed("k2", "k"), unkeyed("u"), keyed("l1", "l"))
	require.ElementsMatch(e, []string{"u", "l1"}, uuids(e.arrivals(s, other)), "while k1 is claimed, k2 of the same key "+
		"must wait, on all instances; other messages must not")
	e.done(s, first...)
	e.awaitFrom([]outbox.Store{s, other}, "k2")
}

func fetchHoldsAKeyBackWhileItsFirstWaits(e *env) {
	s := e.open()
	e.save(s, keyed("k1", "k"))
	first := e.await(s, "k1")[0]
	e.save(s, keyed("k2", "k"), keyed("k3", "k"))
	if l, ok := s.(outbox.LeasedStore); ok {
		e.postpone(l, never, first)
		e.nothing(s, "while k1 waits for its next attempt, the messages behind it in its key wait")
		return
	}
	require.NoError(e, s.MarkFailed(e.ctx, first.ID, errBroker), "MarkFailed")
	e.awaitFirst(s, "k1") // fails if another comes before it
}

// awaitFirst claims until the message came, alone or with others of its key behind it, and ends the claims of those.
func (e *env) awaitFirst(s outbox.Store, uuid string) outbox.Message {
	e.Helper()
	var got []outbox.Message
	e.poll("FetchPending returns message "+uuid, func() bool {
		got = e.fetch(s, many)
		return len(got) > 0
	})
	require.Equal(e, uuid, got[0].UUID, "the first message that FetchPending returns")
	for _, m := range got[1:] {
		require.Equal(e, got[0].Key, m.Key, "the key of what comes with message %s", uuid)
	}
	if l, ok := s.(outbox.LeasedStore); ok {
		if len(got) > 1 {
			require.NoError(e, l.Release(e.ctx, ids(got[1:])...), "Release")
		}
	} else {
		e.failClaimed(s, got[1:])
	}
	return got[0]
}

// failClaimed is how a store without Release is told that claimed messages were not published.
func (e *env) failClaimed(s outbox.Store, msgs []outbox.Message) {
	e.Helper()
	for _, m := range msgs {
		require.NoError(e, s.MarkFailed(e.ctx, m.ID, errors.New("behind a failed message")), "MarkFailed")
	}
}

// postpone counts a failed attempt of claimed messages, which then wait.
func (e *env) postpone(l outbox.LeasedStore, wait time.Duration, msgs ...outbox.Message) {
	e.Helper()
	outcomes := make([]outbox.Outcome, len(msgs))
	for i, m := range msgs {
		outcomes[i] = outbox.Outcome{ID: m.ID, Status: outbox.StatusPending, RetryAfter: wait, Err: errBroker}
	}
	require.NoError(e, l.Settle(e.ctx, outcomes...), "Settle as pending")
}

var errBroker = errors.New("the broker said no")

func fetchLetsNoOtherKeyWait(e *env) {
	s := e.open()
	e.save(s, keyed("k1", "k"))
	first := e.await(s, "k1")[0]
	require.NoError(e, s.MarkFailed(e.ctx, first.ID, errBroker), "MarkFailed")
	e.save(s, keyed("l1", "l"), unkeyed("u1"))
	arrived := uuids(e.arrivals(s))
	require.Contains(e, arrived, "l1", "a failed message must hold back its own key only")
	require.Contains(e, arrived, "u1", "a failed message must not hold back messages without a key")
}

// A key that hangs, with all that is behind it, must not fill the window of what a relay reads.
func fetchLetsNoOtherKeyWaitBehindALongOne(e *env) {
	s := e.open()
	e.saveNumbered(s, "k", "k", 3000)
	e.save(s, keyed("l1", "l"))
	arrived := false
	e.poll("FetchPending returns l1, in spite of 3,000 messages before it whose key hangs", func() bool {
		for _, m := range e.fetch(s, 10) {
			arrived = arrived || m.UUID == "l1"
		}
		return arrived
	})
}

func fetchTellsKeysApart(e *env) {
	s := e.open()
	for _, key := range []string{
		"key", "KEY", "Key", "key ", " key", "kéy", "ke\u0301y", "ｋｅｙ", "key\u200b", "0", "00", "0.0",
	} {
		e.save(s, keyed("of "+key, key))
		e.await(s, "of "+key) // while those before are claimed
	}
}

func fetchGivesUnkeyedIndependently(e *env) {
	s := e.open()
	e.saveNumbered(s, "", "u", 4)
	claimed := e.await(s, numbered("u", 4)...)
	require.NoError(e, s.MarkFailed(e.ctx, claimed[0].ID, errBroker), "MarkFailed")
	e.done(s, claimed[2])
	e.save(s, unkeyed("u5"))
	arrived := uuids(e.arrivals(s)) // u1 may be among them, after a short backoff
	require.Contains(e, arrived, "u5", "a message without a key waits for no other, claimed or failed")
	require.Subset(e, []string{"u1", "u5"}, arrived, "u2 and u4 are claimed, u3 is processed")
}

func fetchHoldsADelayedMessage(e *env) {
	s := e.open()
	due := time.Now().Add(e.soon())
	delayed, muchLater := keyed("delayed", "k"), keyed("much later", "k")
	delayed.AvailableAt, muchLater.AvailableAt = due, time.Now().Add(never)
	e.save(s, muchLater, delayed, keyed("behind", "k"))

	check := func(msgs []outbox.Message) (arrived bool) {
		for _, m := range msgs {
			require.NotEqual(e, "much later", m.UUID, "a delayed message was returned an hour before it is due")
			if m.UUID == "delayed" {
				require.False(e, time.Now().Before(due), "a delayed message was returned before it is due")
				arrived = true
			}
		}
		e.done(s, msgs...)
		return arrived
	}
	first := e.arrivals(s)
	require.Contains(e, uuids(first), "behind", "a delayed message must hold nothing back before it is due")
	if !check(first) {
		e.poll("FetchPending returns a delayed message when it is due", func() bool { return check(e.fetch(s, many)) })
	}
}

func fetchGivesADelayedMessageItsPlace(e *env) {
	s := e.open()
	e.done(s, e.arrivals(s)...)
	delayed := keyed("k1", "k")
	delayed.AvailableAt = time.Now().Add(e.soon())
	e.save(s, delayed, keyed("k2", "k"), keyed("k3", "k"))
	// No synchronization, but the condition itself: by then it is due.
	time.Sleep(time.Until(delayed.AvailableAt) + 20*time.Millisecond)
	want := numbered("k", 3)
	require.Equal(e, want, uuids(e.drain(s, want...)), "once due, a delayed message goes before those that were saved "+
		"after it")
}

func fetchGivesADelayedMessageItsPlaceBeforeAWait(e *env) {
	s := e.open()
	l, ok := s.(outbox.LeasedStore)
	e.needs("Features.Slots", ok)
	delayed := keyed("k1", "k")
	delayed.AvailableAt = time.Now().Add(e.soon())
	e.save(s, delayed, keyed("k2", "k"))
	if second := e.await(s, "k2"); time.Now().Before(delayed.AvailableAt) {
		e.postpone(l, never, second...)
		e.done(s, e.await(s, "k1")...) // when it is due; it was saved before k2, whose wait is none of its business
		e.nothing(s, "k2 still waits for its next attempt")
	}
}

// Behind a limit a message may be known to the store, and not claimed, when an earlier one of its key falls due.
func fetchGivesADelayedMessageItsPlaceBeforeOthers(e *env) {
	s := e.open()
	e.done(s, e.arrivals(s)...)
	delayed := keyed("k1", "k")
	delayed.AvailableAt = time.Now().Add(e.soon())
	e.save(s, delayed, unkeyed("u1"), unkeyed("u2"), keyed("k2", "k"), keyed("k3", "k"))
	claimed := e.fetch(s, 1)
	left := slices.DeleteFunc([]string{"k1", "u1", "u2", "k2", "k3"}, func(uuid string) bool {
		return slices.Contains(uuids(claimed), uuid)
	})
	e.done(s, claimed...)
	time.Sleep(time.Until(delayed.AvailableAt) + 20*time.Millisecond) // it is due by then
	order := append(uuids(claimed), uuids(e.drain(s, left...))...)
	if !slices.Contains(uuids(claimed), "k2") {
		requireBefore(e, order, "k1", "k2")
	}
	requireBefore(e, order, "k2", "k3")
}

func fetchSeesNothingOfAnOpenTransaction(e *env) {
	s := e.open()
	e.done(s, e.arrivals(s)...) // a lease is held, where there are any
	tx := e.begin(s)
	e.saveIn(s, tx, unkeyed("open"))
	for range 3 {
		require.Empty(e, uuids(e.fetch(s, many)), "a message was returned whose transaction is open")
	}
	if !e.features.OneWriter {
		e.nothing(s, "their transaction is open")
	}
	e.commit(tx)
	e.await(s, "open")
}
