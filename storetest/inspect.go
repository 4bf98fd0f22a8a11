package storetest

import (
	"slices"
	"sync/atomic"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
)

func inspectorPromises() []promise {
	return []promise{
		{name: "ListFailed_ReturnsTheMessagesWhole", check: listFailedReturnsWholeMessages},
		{name: "ListFailed_ReturnsPagesByID", check: listFailedReturnsPages},
		{name: "ListFailed_LeavesOutAllOthers", check: listFailedLeavesOutOthers},
		{name: "Requeue_MakesAMessagePendingAgain", check: requeueMakesAMessagePending},
		{name: "Requeue_PutsItLastInItsKey", check: requeuePutsItLast},
		{name: "Requeue_TakesSeveralIDs", check: requeueTakesSeveral},
		{name: "Requeue_CountsWhatItFound", check: requeueCountsWhatItFound},
		{name: "Requeue_WorksOnce_FromManyAtOnce", check: requeueWorksOnce},
		{name: "Requeue_LeavesProcessedMessagesAlone", check: requeueLeavesProcessedAlone},
		{name: "Discard_DeletesForGood", check: discardDeletesForGood},
		{name: "Discard_CountsWhatItFound", check: discardCountsWhatItFound},
	}
}

func statsPromises() []promise {
	return []promise{
		{name: "CountsPendingAndFailedMessages", check: statsCounts},
		{name: "TellsTheAgeOfTheOldest", check: statsTellsTheAge},
		{name: "CountsADelayedMessageFromWhenItIsDue", check: statsCountsADelayedMessageFromWhenItIsDue},
		{name: "CountsAFailedMessageFromWhenItWasSaved", check: statsCountsAFailedMessageFromWhenItWasSaved},
		{name: "IsZero_WhenThereIsNothing", check: statsIsZero},
	}
}

func (e *env) openInspector() (outbox.Store, outbox.Inspector) {
	e.Helper()
	e.needs("Features.Inspector", e.features.Inspector)
	s := e.open()
	i, ok := s.(outbox.Inspector)
	require.True(e, ok, "Features.Inspector is on, but a %T is no outbox.Inspector", s)
	return s, i
}

// saveFailed saves messages and sets them aside, in that order.
func (e *env) saveFailed(s outbox.Store, msgs ...outbox.Message) {
	e.Helper()
	for _, m := range msgs {
		e.save(s, m)
		e.setAside(s, e.await(s, m.UUID)...)
	}
}

func (e *env) listFailed(i outbox.Inspector, afterID string, limit int) []outbox.Message {
	e.Helper()
	msgs, err := i.ListFailed(e.ctx, afterID, limit)
	require.NoError(e, err, "ListFailed")
	require.LessOrEqual(e, len(msgs), limit, "messages that ListFailed returned, against its limit")
	return msgs
}

// requireFailed checks how many messages are set aside, and returns them.
func (e *env) requireFailed(i outbox.Inspector, want int, why string) []outbox.Message {
	e.Helper()
	n, err := i.CountFailed(e.ctx)
	require.NoError(e, err, "CountFailed")
	require.EqualValues(e, want, n, "messages set aside, by CountFailed: "+why)
	failed := e.listFailed(i, "", many)
	require.Len(e, failed, want, "messages set aside, by ListFailed: "+why)
	return failed
}

// requireSetAside is the same for a store that may be an Inspector.
func (e *env) requireSetAside(s outbox.Store, want int, why string) []outbox.Message {
	e.Helper()
	if i, ok := s.(outbox.Inspector); ok {
		return e.requireFailed(i, want, why)
	}
	return nil
}

func (e *env) requeue(i outbox.Inspector, want int, ids ...string) {
	e.Helper()
	n, err := i.Requeue(e.ctx, ids...)
	require.NoError(e, err, "Requeue")
	require.EqualValues(e, want, n, "ids that Requeue found")
}

func listFailedReturnsWholeMessages(e *env) {
	s, i := e.openInspector()
	saved := outbox.Message{
		UUID: "m", Topic: "topic", Key: "k", Payload: []byte("\x00payload\xff"), Headers: map[string]string{"a": "b\x00"},
	}
	e.saveFailed(s, saved)
	m := e.requireFailed(i, 1, "one message was")[0]
	require.Equal(e, []any{saved.UUID, saved.Topic, saved.Key, saved.Payload, saved.Headers},
		[]any{m.UUID, m.Topic, m.Key, m.Payload, m.Headers}, "UUID, topic, key, payload and headers of a message set aside")
	require.NotEmpty(e, m.ID, "id of a message set aside")
	require.Equal(e, outbox.StatusFailed, m.Status, "status of a message set aside")
	require.Contains(e, m.LastError, errBroker.Error(), "LastError of a message set aside")
	require.False(e, m.CreatedAt.IsZero(), "CreatedAt must be set")
	require.WithinDuration(e, time.Now(), m.ProcessedAt, 10*time.Minute, "ProcessedAt is when the message was set aside")
}

func listFailedReturnsPages(e *env) {
	s, i := e.openInspector()
	names := numbered("m", 5)
	for _, uuid := range names {
		e.saveFailed(s, unkeyed(uuid))
	}
	var got []string
	var sizes []int
	after := ""
	for range len(names) + 1 {
		page := e.listFailed(i, after, 2)
		sizes = append(sizes, len(page))
		if len(page) == 0 {
			break
		}
		for _, m := range page {
			require.True(e, after == "" || idLess(after, m.ID), "ListFailed after id %s returned id %s", after, m.ID)
			after = m.ID
		}
		got = append(got, uuids(page)...)
	}
	require.ElementsMatch(e, names, got, "messages set aside, from all pages")
	for _, limit := range []int{0, -1} {
		page, err := i.ListFailed(e.ctx, "", limit)
		require.Empty(e, page, "messages that ListFailed returned with limit %d (error: %v)", limit, err)
	}
	require.Equal(e, []int{2, 2, 1, 0}, sizes, "sizes of pages with limit 2")
}

func listFailedLeavesOutOthers(e *env) {
	s, i := e.openInspector()
	e.requireFailed(i, 0, "nothing was saved")
	e.saveFailed(s, unkeyed("failed"))
	e.save(s, unkeyed("pending"), unkeyed("claimed"), unkeyed("waits"), unkeyed("processed"))
	claimed := e.await(s, "pending", "claimed", "waits", "processed")
	require.NoError(e, s.MarkFailed(e.ctx, claimed[2].ID, errBroker), "MarkFailed")
	e.done(s, claimed[3])
	failed := e.requireFailed(i, 1, "others are pending, claimed, waiting for their next attempt or processed")
	require.Equal(e, []string{"failed"}, uuids(failed), "messages set aside")
	e.requeue(i, 0, ids(claimed)...)
}

func requeueMakesAMessagePending(e *env) {
	s, i := e.openInspector()
	saved := outbox.Message{
		UUID: "m", Topic: "topic", Key: "k", Payload: []byte("\x00payload\xff"), Headers: map[string]string{"a": "b"},
	}
	e.saveFailed(s, saved)
	failed := e.requireFailed(i, 1, "one message was")
	e.requeue(i, 1, ids(failed)...)
	e.requireFailed(i, 0, "the only one was requeued")
	m := e.await(s, "m")[0]
	require.True(e, idLess(failed[0].ID, m.ID), "a requeued message gets a new id, above its former %s, not %s",
		failed[0].ID,
		m.ID)
	require.Equal(e, []any{saved.UUID, saved.Topic, saved.Key, saved.Payload, saved.Headers},
		[]any{m.UUID, m.Topic, m.Key, m.Payload, m.Headers}, "UUID, topic, key, payload and headers of a requeued message")
	require.Zero(e, m.Retries, "retries of a requeued message")
	require.Equal(e, outbox.StatusProcessing, m.Status, "status of a requeued message that is claimed")
	require.NoError(e, s.MarkFailed(e.ctx, m.ID, errBroker), "MarkFailed of a requeued message")
	e.requireFailed(i, 0, "a requeued message has all its attempts again")
	require.Equal(e, 1, e.again(s, "m").Retries, "retries of a requeued message that failed")
}

func requeuePutsItLast(e *env) {
	s, i := e.openInspector()
	e.saveFailed(s, keyed("failed", "k"))
	e.saveNumbered(s, "k", "k", 2)
	e.requeue(i, 1, ids(e.requireFailed(i, 1, "one message was"))...)
	e.save(s, keyed("k3", "k"))
	want := []string{"k1", "k2", "failed", "k3"}
	require.Equal(e, want, uuids(e.drain(s, want...)), "a requeued message goes behind what its key has pending")
}

func requeueTakesSeveral(e *env) {
	s, i := e.openInspector()
	want := numbered("k", 3)
	for _, uuid := range want {
		e.saveFailed(s, keyed(uuid, "k"))
	}
	list := ids(e.requireFailed(i, 3, "three messages were"))
	slices.Reverse(list)
	e.requeue(i, 3, list...)
	got := uuids(e.drain(s, want...))
	slices.Sort(got) // their order is not promised, that each comes once is
	require.Equal(e, want, got, "requeued messages")
	e.nothing(s, "each was requeued once")
}

func requeueCountsWhatItFound(e *env) {
	s, i := e.openInspector()
	e.saveFailed(s, unkeyed("a"), unkeyed("b"))
	e.save(s, unkeyed("pending"))
	list := ids(e.requireFailed(i, 2, "two messages were"))
	e.requeue(i, 0)
	e.requeue(i, 0, wellFormedIDs()...)
	for _, id := range unknownIDs() { // what cannot be an id may be an error
		n, err := i.Requeue(e.ctx, id)
		require.Zero(e, n, "ids that Requeue found, of %q (%v)", id, err)
	}
	e.requeue(i, 1, append(wellFormedIDs(), list[0])...)
	e.requeue(i, 1, list...)
	e.requeue(i, 0, list...)
	e.await(s, "a", "b", "pending")
}

func requeueWorksOnce(e *env) {
	s, i := e.openInspector()
	_, other := e.openInspector()
	e.saveFailed(s, unkeyed("a"), unkeyed("b"))
	list := ids(e.requireFailed(i, 2, "two messages were"))
	var found atomic.Int64
	e.together(6, func(n int) error {
		count, err := []outbox.Inspector{i, other}[n%2].Requeue(e.ctx, list...)
		found.Add(count)
		return err
	})
	require.EqualValues(e, 2, found.Load(), "ids found by six calls of Requeue at once, of two")
	e.await(s, "a", "b")
	e.nothing(s, "each was requeued once")
}

func requeueLeavesProcessedAlone(e *env) {
	s, i := e.openInspector()
	e.save(s, unkeyed("m"))
	claimed := e.await(s, "m")
	e.done(s, claimed...) // and kept
	e.requeue(i, 0, ids(claimed)...)
	n, err := i.Discard(e.ctx, ids(claimed)...)
	require.NoError(e, err, "Discard")
	require.Zero(e, n, "ids that Discard found, of a processed message")
	require.EqualValues(e, 1, e.deleteProcessedBefore(s, farFuture()), "processed messages, after Requeue and Discard")
	e.nothing(s, "Requeue is for messages that were set aside, and it was processed")
}

func discardDeletesForGood(e *env) {
	s, i := e.openInspector()
	e.saveFailed(s, unkeyed("a"), unkeyed("b"))
	failed := e.requireFailed(i, 2, "two messages were")
	n, err := i.Discard(e.ctx, failed[0].ID)
	require.NoError(e, err, "Discard")
	require.EqualValues(e, 1, n, "ids that Discard found")
	e.requireFailed(i, 1, "one of two was discarded")
	e.requeue(i, 1, ids(failed)...)
	e.await(s, failed[1].UUID)
	e.nothing(s, "it was discarded")
}

func discardCountsWhatItFound(e *env) {
	s, i := e.openInspector()
	e.saveFailed(s, unkeyed("a"), unkeyed("b"))
	e.save(s, unkeyed("claimed"))
	claimed := e.await(s, "claimed")
	list := ids(e.requireFailed(i, 2, "two messages were"))
	for _, call := range []struct {
		ids  []string
		want int
	}{
		{nil, 0}, {wellFormedIDs(), 0}, {ids(claimed), 0}, {append(wellFormedIDs(), list[0]), 1}, {list, 1}, {list, 0},
	} {
		n, err := i.Discard(e.ctx, call.ids...)
		require.NoError(e, err, "Discard")
		require.EqualValues(e, call.want, n, "ids that Discard found, of %q", call.ids)
	}
	e.done(s, claimed...)
}

func (e *env) openReporter() (outbox.Store, func() outbox.Stats) {
	e.Helper()
	e.needs("Features.StatsReporter", e.features.StatsReporter)
	s := e.open()
	r, ok := s.(outbox.StatsReporter)
	require.True(e, ok, "Features.StatsReporter is on, but a %T is no outbox.StatsReporter", s)
	return s, func() outbox.Stats {
		e.Helper()
		stats, err := r.Stats(e.ctx)
		require.NoError(e, err, "Stats")
		return stats
	}
}

func statsCounts(e *env) {
	s, stats := e.openReporter()
	e.saveFailed(s, of("a", "failed", ""))
	delayed := of("b", "delayed", "")
	delayed.AvailableAt = time.Now().Add(never)
	e.save(s, of("a", "pending", ""), of("a", "claimed", ""), of("a", "waits", ""), of("a", "processed", ""),
		of("c", "processed as well", ""), delayed)
	claimed := e.await(s, "pending", "claimed", "waits", "processed", "processed as well")
	require.NoError(e, s.MarkFailed(e.ctx, claimed[2].ID, errBroker), "MarkFailed")
	e.done(s, claimed[3:]...)

	got := stats()
	require.EqualValues(e, 4, got.Pending, "Pending: all that is not published yet, claimed and delayed messages included")
	require.EqualValues(e, 1, got.Failed, "Failed: what was set aside")
	require.Equal(e, map[string]int64{"a": 3, "b": 1}, got.PendingByTopic, "PendingByTopic, for each topic that has any")
}

func statsTellsTheAge(e *env) {
	s, stats := e.openReporter()
	e.save(s, unkeyed("oldest"))
	const apart, rounding = 20 * time.Millisecond, 2 * time.Millisecond
	time.Sleep(apart) // to have an age of its own
	begun := time.Now()
	e.save(s, unkeyed("newer"))
	claimed := e.await(s, "oldest", "newer")
	require.GreaterOrEqual(e, stats().OldestAge, apart-rounding, "OldestAge, of which one was saved before the other")
	e.done(s, claimed[0])
	require.LessOrEqual(e, stats().OldestAge, time.Since(begun)+rounding, "OldestAge, after the oldest was processed")
}

func statsCountsADelayedMessageFromWhenItIsDue(e *env) {
	const rounding = 5 * time.Millisecond
	s, stats := e.openReporter()
	e.done(s, e.arrivals(s)...)
	later := unkeyed("much later")
	later.AvailableAt = time.Now().Add(never)
	e.save(s, later)
	got := stats()
	require.EqualValues(e, 1, got.Pending, "Pending, of which one message is delayed")
	require.Zero(e, got.OldestAge, "OldestAge, while nothing is due")

	delayed := unkeyed("delayed")
	delayed.AvailableAt = time.Now().Add(e.soon())
	e.save(s, delayed)
	claimed := e.await(s, "delayed")
	require.LessOrEqual(e, stats().OldestAge, time.Since(delayed.AvailableAt)+rounding, "OldestAge counts a delayed "+
		"message "+
		"from when it was due")
	e.done(s, claimed...)
	require.Zero(e, stats().OldestAge, "OldestAge, when nothing is due any more")
}

func statsCountsAFailedMessageFromWhenItWasSaved(e *env) {
	const apart, rounding = 20 * time.Millisecond, 2 * time.Millisecond
	s, stats := e.openReporter()
	e.save(s, unkeyed("failed"))
	claimed := e.await(s, "failed")
	time.Sleep(apart) // to have an age
	require.NoError(e, s.MarkFailed(e.ctx, claimed[0].ID, errBroker), "MarkFailed")
	require.GreaterOrEqual(e, stats().OldestAge, apart-rounding, "OldestAge of a message that waits for its next "+
		"attempt counts "+
		"from when it was saved")
}

func statsIsZero(e *env) {
	s, stats := e.openReporter()
	check := func(why string) {
		got := stats()
		require.Zero(e, got.Pending, "Pending: "+why)
		require.Zero(e, got.Failed, "Failed: "+why)
		require.Zero(e, got.OldestAge, "OldestAge: "+why)
		require.Empty(e, got.PendingByTopic, "PendingByTopic: "+why)
	}
	check("nothing was saved")
	e.save(s, unkeyed("m"))
	e.done(s, e.await(s, "m")...)
	check("all is processed")
}
