package storetest

import (
	"context"
	"errors"
	"fmt"

	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
)

func claimPromises() []promise {
	return []promise{
		{name: "ReturnsAtMostLimitMessages", check: claimReturnsAtMostLimit},
		{name: "ReturnsAtMostMaxBytes", check: claimReturnsAtMostMaxBytes},
		{name: "ReturnsAMessageLargerThanMaxBytesAlone", check: claimReturnsALargeMessageAlone},
		{name: "ReturnsNothing_WhenTheLimitIsNotPositive", check: claimReturnsNothingWithoutLimit},
		{name: "ReturnsNoMoreOfAKey_WhileAnyOfItIsClaimed", check: claimReturnsNoMoreOfAKey},
		{name: "ReturnsAKeyInOrder", check: claimReturnsAKeyInOrder},
		{name: "ReturnsWhatCannotBeDecodedAsFailed", check: claimReturnsUndecodableAsFailed},
		{name: "SharesItsClaimsWithFetchPending", check: claimSharesItsClaimsWithFetchPending},
	}
}

func pausePromises() []promise {
	return []promise{
		{name: "LeavesOutTheTopicAndWhatIsBehindItInItsKeys", check: pauseLeavesOutTheTopic},
		{name: "ReplacesTheSet", check: pauseReplacesTheSet},
		{name: "LeavesClaimsAlone", check: pauseLeavesClaimsAlone},
	}
}

// openLeased returns a new relay instance of a store with leases.
func (e *env) openLeased() outbox.LeasedStore {
	e.Helper()
	e.needs("Features.Slots", e.features.Slots > 0)
	s := e.open()
	l, ok := s.(outbox.LeasedStore)
	require.True(e, ok, "Features.Slots is %d, but a %T is no outbox.LeasedStore", e.features.Slots, s)
	return l
}

// tryClaim is Claim, for which having no lease is having nothing to do, and a check of what holds for each call.
func (e *env) tryClaim(ctx context.Context, l outbox.LeasedStore, limit, maxBytes int) ([]outbox.Message, error) {
	msgs, err := l.Claim(ctx, limit, maxBytes)
	if errors.Is(err, outbox.ErrNoLease) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("call Claim: %w", err)
	}
	size := 0
	for _, m := range msgs {
		size += m.Size()
	}
	if size > maxBytes && len(msgs) > 1 {
		return nil, fmt.Errorf("a Claim returned %d messages of together %d bytes (by Message.Size), with maxBytes %d",
			len(msgs), size, maxBytes)
	}
	return msgs, checkClaimed(limit, msgs)
}

func (e *env) claim(l outbox.LeasedStore, limit, maxBytes int) []outbox.Message {
	e.Helper()
	msgs, err := e.tryClaim(e.ctx, l, limit, maxBytes)
	require.NoError(e, err)
	return msgs
}

const (
	noMaxBytes = 1 << 30
	oneKiB     = 1 << 10
)

func (e *env) settle(l outbox.LeasedStore, outcomes ...outbox.Outcome) {
	e.Helper()
	require.NoError(e, l.Settle(e.ctx, outcomes...), "Settle of claimed messages")
}

// processed returns outcomes that delete the messages.
func processed(msgs ...outbox.Message) []outbox.Outcome {
	outcomes := make([]outbox.Outcome, len(msgs))
	for i, m := range msgs {
		outcomes[i] = outbox.Outcome{ID: m.ID, Status: outbox.StatusProcessed}
	}
	return outcomes
}

func claimReturnsAtMostLimit(e *env) {
	l := e.openLeased()
	e.saveNumbered(l, "", "m", 10)
	n := 0
	e.poll("Claim with a limit of 4 returns ten messages, in at least three calls", func() bool {
		n += len(e.claim(l, 4, noMaxBytes)) // claim checks the limit
		return n == 10
	})
	e.nothing(l, "ten messages were saved, and ten are claimed")
}

func claimReturnsAtMostMaxBytes(e *env) {
	l := e.openLeased()
	for i := range 12 {
		m := unkeyed(fmt.Sprint(i))
		m.Payload = make([]byte, oneKiB)
		m.Headers = map[string]string{"header": string(make([]byte, oneKiB))}
		e.save(l, m)
	}
	n := 0
	e.poll("Claim with maxBytes for four messages returns twelve, in several calls", func() bool {
		n += len(e.claim(l, many, 10*oneKiB)) // claim checks the size
		return n == 12
	})
}

func claimReturnsALargeMessageAlone(e *env) {
	l := e.openLeased()
	for _, uuid := range numbered("m", 3) {
		m := unkeyed(uuid)
		m.Payload = make([]byte, 64*oneKiB)
		e.save(l, m)
	}
	n := 0
	e.poll("Claim with a maxBytes of 1 returns three messages, one at a time", func() bool {
		got := e.claim(l, many, 1)
		n += len(got)
		return n == 3
	})
}

func claimReturnsNothingWithoutLimit(e *env) {
	l := e.openLeased()
	e.done(l, e.arrivals(l)...)
	e.save(l, unkeyed("a"))
	for _, limit := range []int{0, -1} {
		require.Empty(e, e.claim(l, limit, noMaxBytes), "Claim with limit %d", limit)
	}
	e.await(l, "a")
}

func claimReturnsNoMoreOfAKey(e *env) {
	l := e.openLeased()
	e.saveNumbered(l, "k", "k", 10)
	var first []outbox.Message
	e.poll("Claim returns the first of ten messages of a key", func() bool {
		first = e.claim(l, 3, noMaxBytes)
		return len(first) > 0
	})
	require.Equal(e, numbered("k", len(first)), uuids(first), "Claim must return the oldest messages of a key")
	e.nothing(l, "while messages of their key are claimed, no more of it may be")
	if len(first) > 1 { // one of several settled: the key still waits for the others
		e.settle(l, processed(first[0])...)
		e.nothing(l, "while messages of their key are claimed, no more of it may be")
		first = first[1:]
	}
	e.settle(l, processed(first...)...)
	e.poll("Claim returns the rest of the key after what was claimed is settled", func() bool {
		return len(e.claim(l, many, noMaxBytes)) > 0
	})
}

func claimReturnsAKeyInOrder(e *env) {
	l := e.openLeased()
	want := e.saveNumbered(l, "k", "k", 30)
	var got []string
	limits := []int{1, 7, 2, many}
	calls := 0
	e.poll("Claim returns thirty messages of a key that are settled in turn", func() bool {
		calls++
		msgs := e.claim(l, limits[calls%len(limits)], noMaxBytes)
		got = append(got, uuids(msgs)...)
		e.settle(l, processed(msgs...)...)
		return len(got) >= len(want)
	})
	require.Equal(e, want, got, "order of a key")
}

func claimReturnsUndecodableAsFailed(e *env) {
	e.needs("Harness.Damage", e.h.Damage != nil)
	l := e.openLeased()
	e.save(l, keyed("k1", "k"), unkeyed("u1"), keyed("k2", "k"), unkeyed("u2"))
	e.h.Damage(e.T, "k1")
	e.h.Damage(e.T, "u1")
	var order []string
	e.poll("Claim returns all four messages, of which two cannot be decoded", func() bool {
		for _, m := range e.claim(l, many, noMaxBytes) {
			order = append(order, m.UUID)
			if m.UUID != "k1" && m.UUID != "u1" {
				require.Equal(e, outbox.StatusProcessing, m.Status, "status of the undamaged message %s", m.UUID)
				e.settle(l, processed(m)...)
				continue
			}
			require.Equal(e, outbox.StatusFailed, m.Status, "status of message %s, whose headers cannot be decoded", m.UUID)
			require.NotEmpty(e, m.LastError, "LastError of a message that cannot be decoded")
			require.NotEmpty(e, m.Topic, "the topic of a message whose headers cannot be decoded")
			err := errors.New("set aside: " + m.LastError)
			e.settle(l, outbox.Outcome{ID: m.ID, Status: outbox.StatusFailed, Err: err})
		}
		return len(order) == 4
	})
	for _, m := range e.requireSetAside(l, 2, "two messages could not be decoded, and were settled as failed") {
		require.Contains(e, m.LastError, "set aside: ", "LastError of a damaged message must be the one that it was "+
			"settled with")
	}
	e.nothing(l, "all were settled")
}

func claimSharesItsClaimsWithFetchPending(e *env) {
	l := e.openLeased()
	e.saveNumbered(l, "", "m", 4)
	e.await(l, numbered("m", 4)...) // by FetchPending
	require.Empty(e, uuids(e.claim(l, many, noMaxBytes)), "Claim returned what FetchPending has claimed")
	e.saveNumbered(l, "", "n", 4)
	n := 0
	e.poll("Claim returns four messages", func() bool {
		n += len(e.claim(l, many, noMaxBytes))
		return n == 4
	})
	e.nothing(l, "Claim has claimed them")
}

func (e *env) openPausable() (outbox.LeasedStore, outbox.TopicPauser) {
	e.Helper()
	e.needs("Features.TopicPauser", e.features.TopicPauser)
	l := e.openLeased()
	p, ok := outbox.Store(l).(outbox.TopicPauser)
	require.True(e, ok, "Features.TopicPauser is on, but a %T is no outbox.TopicPauser", l)
	return l, p
}

func of(topic, uuid, key string) outbox.Message {
	m := keyed(uuid, key)
	m.Topic = topic
	return m
}

func pauseLeavesOutTheTopic(e *env) {
	l, p := e.openPausable()
	p.PauseTopics("down")
	e.save(l, of("down", "k1", "k"), of("up", "k2", "k"), of("up", "l1", "l"), of("down", "l2", "l"), of("up", "l3", "l"),
		of("down", "u1", ""), of("up", "u2", ""))
	var got []string
	for range 2 { // the second time after the first ones are settled
		arrived := e.arrivals(l)
		got = append(got, uuids(arrived)...)
		e.done(l, arrived...)
	}
	require.ElementsMatch(e, []string{"l1", "u2"}, got, "Claim must leave out the messages of a paused topic and those "+
		"behind "+
		"them in their keys, and nothing else")
	p.PauseTopics()
	for _, m := range e.drain(l, "k1", "k2", "l2", "l3", "u1") {
		got = append(got, m.UUID)
	}
	for _, order := range [][2]string{{"k1", "k2"}, {"l1", "l2"}, {"l2", "l3"}} {
		requireBefore(e, got, order[0], order[1])
	}
}

func requireBefore(e *env, list []string, first, second string) {
	e.Helper()
	at := map[string]int{}
	for i, s := range list {
		at[s] = i
	}
	require.Contains(e, at, first)
	require.Contains(e, at, second)
	require.Less(e, at[first], at[second], "%s must come before %s, in %q", first, second, list)
}

func pauseReplacesTheSet(e *env) {
	l, p := e.openPausable()
	p.PauseTopics("a", "b")
	e.save(l, of("a", "a1", ""), of("b", "b1", ""), of("c", "c1", ""))
	require.Equal(e, []string{"c1"}, uuids(e.arrivals(l)), "topics a and b are paused")
	p.PauseTopics("b", "c")
	require.Equal(e, []string{"a1"}, uuids(e.arrivals(l)), "topics b and c are paused, and a is no more")
	p.PauseTopics()
	e.await(l, "b1")
}

func pauseLeavesClaimsAlone(e *env) {
	l, p := e.openPausable()
	e.save(l, of("a", "a1", "k"), of("a", "a2", "l"))
	claimed := e.await(l, "a1", "a2")
	p.PauseTopics("a")
	require.True(e, l.Owned(claimed[0].ID), "a claim ends by Settle or Release, not by a pause of its topic")
	e.done(l, claimed[0])
	require.NoError(e, l.Release(e.ctx, claimed[1].ID), "Release")
	e.nothing(l, "the topic is paused, also for a message that was claimed before and released")
	p.PauseTopics()
	e.await(l, "a2")
}
