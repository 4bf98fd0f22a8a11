package storetest

import (
	"errors"
	"strings"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
)

func markProcessedPromises() []promise {
	return []promise{
		{name: "EndsAMessageForGood", check: markProcessedEndsAMessage},
		{name: "LetsTheKeyGoOn", check: markProcessedLetsTheKeyGoOn},
		{name: "DoesNothing_WithoutIDs", check: markProcessedDoesNothingWithoutIDs},
		{name: "SettlesTheOthers_WhenAnIDIsUnknown", check: markProcessedSettlesTheOthers},
		{name: "KnowsAMessageOnce", check: markProcessedKnowsAMessageOnce},
		{name: "TakesAnIDTwice_InOneCall", check: markProcessedTakesAnIDTwice},
	}
}

func markFailedPromises() []promise {
	return []promise{
		{name: "CountsARetryAndKeepsTheError", check: markFailedCounts},
		{name: "LetsTheMessageWait", check: markFailedLetsTheMessageWait},
		{name: "HoldsBackItsKey", check: markFailedHoldsBackItsKey},
		{name: "SetsAside_AtTheMaximumAndNotBefore", check: markFailedSetsAside},
		{name: "TakesAnyErrorText", check: markFailedTakesAnyErrorText},
		{name: "KnowsClaimedMessagesOnly", check: markFailedKnowsClaimedMessagesOnly},
	}
}

func deletePromises() []promise {
	return []promise{
		{name: "DeletesWhatWasProcessedBefore", check: deleteDeletesWhatWasProcessedBefore},
		{name: "IsStrict", check: deleteIsStrict},
		{name: "NeverTouchesPendingOrFailedMessages", check: deleteNeverTouchesPendingOrFailed},
	}
}

// handOver makes another instance free to take over from s.
func (e *env) handOver(s outbox.Store) {
	e.Helper()
	if l, ok := s.(outbox.LeasedStore); ok {
		require.NoError(e, l.Release(e.ctx), "Release of everything")
		return
	}
	e.expire(s)
}

func (e *env) expire(s outbox.Store) {
	e.Helper()
	e.needs("Harness.Expire", e.h.Expire != nil)
	e.h.Expire(e.T, s)
}

func markProcessedEndsAMessage(e *env) {
	s := e.open()
	e.saveNumbered(s, "", "m", 3)
	claimed := e.await(s, numbered("m", 3)...)
	e.done(s, claimed[:2]...)
	e.done(s, claimed[2])
	e.nothing(s, "they are processed")
	e.handOver(s)
	e.nothing(e.open(), "another instance has processed them")
}

func markProcessedLetsTheKeyGoOn(e *env) {
	s := e.open()
	want := e.saveNumbered(s, "k", "k", 3)
	require.Equal(e, want, uuids(e.drain(s, want...)), "order of a key")
	e.save(s, keyed("k4", "k"))
	e.await(s, "k4")
}

func markProcessedDoesNothingWithoutIDs(e *env) {
	s := e.open()
	require.NoError(e, s.MarkProcessed(e.ctx), "MarkProcessed without ids")
	e.saveNumbered(s, "", "m", 2)
	e.await(s, "m1", "m2")
	require.NoError(e, s.MarkProcessed(e.ctx), "MarkProcessed without ids")
	e.handOver(s)
	e.await(e.open(), "m1", "m2")
}

// unknownIDs are ids of nothing that was ever saved in a subtest, and what cannot be an id.
func unknownIDs() []string {
	return append([]string{"-1", "0", "", "not a number", "99999999999999999999999999"}, wellFormedIDs()...)
}

func wellFormedIDs() []string { return []string{"987654321", "1234567"} }

func markProcessedSettlesTheOthers(e *env) {
	s := e.open()
	e.saveNumbered(s, "", "m", 2)
	claimed := e.await(s, "m1", "m2")
	batch := append([]string{claimed[0].ID}, unknownIDs()...)
	e.requireNotClaimed(s.MarkProcessed(e.ctx, append(batch, claimed[1].ID)...), "MarkProcessed of unknown ids among "+
		"others")
	e.handOver(s)
	e.nothing(e.open(), "MarkProcessed must settle all known ids of a call in which some are unknown")
}

// requireNotClaimed checks the error for ids that are not claimed. Only a store with leases must know which are.
func (e *env) requireNotClaimed(err error, what string) {
	e.Helper()
	if e.features.Slots > 0 {
		require.ErrorIs(e, err, outbox.ErrNotClaimed, what)
	}
}

func markProcessedKnowsAMessageOnce(e *env) {
	s := e.open()
	e.saveNumbered(s, "", "m", 2)
	claimed := e.await(s, "m1", "m2")
	e.done(s, claimed[0])
	e.requireNotClaimed(s.MarkProcessed(e.ctx, ids(claimed)...), "MarkProcessed of a message that was processed already")
	e.requireNotClaimed(s.MarkFailed(e.ctx, claimed[0].ID, errBroker), "MarkFailed of a message that was processed "+
		"already")
	e.nothing(s, "both are processed")
	e.handOver(s)
	e.nothing(e.open(), "both are processed")
}

func markProcessedTakesAnIDTwice(e *env) {
	s := e.open()
	e.saveNumbered(s, "", "m", 3)
	claimed := e.await(s, "m1", "m2", "m3")
	e.done(s, claimed[0], claimed[0])
	e.done(s, claimed[1], claimed[2], claimed[1])
	require.EqualValues(e, 3, e.deleteProcessedBefore(s, farFuture()), "messages that are kept as processed")
	e.handOver(s)
	e.nothing(e.open(), "they are processed")
}

// again claims a message that failed, when it is due.
func (e *env) again(s outbox.Store, uuid string) outbox.Message {
	e.Helper()
	if e.features.VirtualTime {
		time.Sleep(outbox.DefaultConfig().MaxRetryBackoff)
	}
	return e.await(s, uuid)[0]
}

func markFailedCounts(e *env) {
	s := e.open()
	e.save(s, unkeyed("m"))
	m := e.await(s, "m")[0]
	require.Zero(e, m.Retries, "retries of a message that was never tried")
	for retries, text := range []string{"first error", "second error"} {
		require.NoError(e, s.MarkFailed(e.ctx, m.ID, errors.New(text)), "MarkFailed")
		m = e.again(s, "m")
		require.Equal(e, retries+1, m.Retries, "MarkFailed must count each attempt")
		require.Contains(e, m.LastError, text, "MarkFailed must keep the text of the last error")
		require.Equal(e, "m", string(m.Payload), "the payload of a message that was tried before")
	}
}

// The backoff is drawn from zero up to a bound that doubles with each attempt, so one message may come at once, but not
// all of several.
func markFailedLetsTheMessageWait(e *env) {
	const attempts = 4
	s := e.open()
	want := e.saveNumbered(s, "", "m", 8)
	claimed := e.raise(s, attempts, e.await(s, want...)...)
	for _, m := range claimed {
		require.NoError(e, s.MarkFailed(e.ctx, m.ID, errBroker), "MarkFailed")
	}
	arrived := e.fetch(s, many)
	require.Less(e, len(arrived), len(want), "%d messages failed for the %dth time, and may all be claimed again at "+
		"once: "+
		"a failed message must wait for a backoff", len(want), attempts+1)
	if _, leased := s.(outbox.LeasedStore); leased { // others may have other backoffs
		e.handOver(s)
		require.Less(e, len(e.arrivals(e.open())), len(want), "another instance must let failed messages wait, too")
	}
}

// raise makes claimed messages fail until they have so many retries, and claims them again.
func (e *env) raise(s outbox.Store, retries int, msgs ...outbox.Message) []outbox.Message {
	e.Helper()
	for range min(retries, e.features.MaxRetries-1) {
		if l, ok := s.(outbox.LeasedStore); ok {
			e.postpone(l, 0, msgs...)
		} else {
			for _, m := range msgs {
				require.NoError(e, s.MarkFailed(e.ctx, m.ID, errBroker), "MarkFailed")
			}
			if e.features.VirtualTime {
				time.Sleep(outbox.DefaultConfig().MaxRetryBackoff)
			}
		}
		msgs = e.await(s, uuids(msgs)...)
	}
	return msgs
}

func markFailedHoldsBackItsKey(e *env) {
	s := e.open()
	e.save(s, keyed("k1", "k"))
	first := e.await(s, "k1")[0]
	e.save(s, keyed("k2", "k"), keyed("k3", "k"))
	want := numbered("k", 3)
	for range 2 {
		require.NoError(e, s.MarkFailed(e.ctx, first.ID, errBroker), "MarkFailed")
		first = e.awaitFirst(s, "k1") // fails if another comes before it
	}
	require.NoError(e, s.MarkFailed(e.ctx, first.ID, errBroker), "MarkFailed")
	if e.features.VirtualTime {
		time.Sleep(outbox.DefaultConfig().MaxRetryBackoff)
	}
	require.Equal(e, want, uuids(e.drain(s, want...)), "a failed message must stay before those behind it in its key")
}

func markFailedSetsAside(e *env) {
	s := e.open()
	e.save(s, keyed("k1", "k"))
	first := e.raise(s, e.features.MaxRetries-1, e.await(s, "k1")...)[0]
	e.save(s, keyed("k2", "k"))
	if e.features.Slots > 0 {
		require.Equal(e, e.features.MaxRetries-1, first.Retries, "retries before the last attempt")
	}
	require.NoError(e, s.MarkFailed(e.ctx, first.ID, errors.New("the last straw")), "MarkFailed")
	e.done(s, e.await(s, "k2")...) // the key goes on
	if e.features.VirtualTime {
		time.Sleep(outbox.DefaultConfig().MaxRetryBackoff)
	}
	e.nothing(s, "MarkFailed was called %d times, which is the maximum: the message is set aside", e.features.MaxRetries)
	for _, m := range e.requireSetAside(s, 1, "k1 was") {
		require.Equal(e, "k1", m.UUID, "messages set aside")
		require.Contains(e, m.LastError, "the last straw", "LastError of a message set aside")
		require.Equal(e, e.features.MaxRetries, m.Retries, "retries of a message set aside at the maximum")
	}
}

// Brokers put into their errors what they like, and a message that cannot be marked would block its key.
func markFailedTakesAnyErrorText(e *env) {
	s := e.open()
	texts := map[string]string{
		"nul": "bad: \x00 bytes", "not utf-8": "bad: \xff\xfe\xc3(", "long": "bad: " + strings.Repeat("ü", 1<<18),
		"quotes": `bad: "'; -- \`, "empty": "",
	}
	var names []string
	for name := range texts {
		names = append(names, name)
		e.save(s, unkeyed(name))
	}
	for _, m := range e.await(s, names...) {
		require.NoError(e, s.MarkFailed(e.ctx, m.ID, errors.New(texts[m.UUID])), "MarkFailed with an error text like %q",
			m.UUID)
	}
	if e.features.VirtualTime {
		time.Sleep(outbox.DefaultConfig().MaxRetryBackoff)
	}
	for _, m := range e.await(s, names...) {
		require.Equal(e, 1, m.Retries, "retries after an error text like %q", m.UUID)
		if texts[m.UUID] != "" {
			require.Contains(e, m.LastError, "bad: ", "what can be kept of an error text like %q must be kept", m.UUID)
		}
	}
}

func markFailedKnowsClaimedMessagesOnly(e *env) {
	s := e.open()
	e.save(s, unkeyed("m"))
	for _, id := range unknownIDs() {
		e.requireNotClaimed(s.MarkFailed(e.ctx, id, errBroker), "MarkFailed of the unknown id "+id)
	}
	require.Zero(e, e.await(s, "m")[0].Retries, "retries after MarkFailed of unknown ids")
}

func farFuture() time.Time { return time.Now().Add(24 * time.Hour) }

func (e *env) deleteProcessedBefore(s outbox.Store, t time.Time) int64 {
	e.Helper()
	n, err := s.DeleteProcessedBefore(e.ctx, t)
	require.NoError(e, err, "DeleteProcessedBefore")
	return n
}

func deleteDeletesWhatWasProcessedBefore(e *env) {
	s := e.open()
	require.Zero(e, e.deleteProcessedBefore(s, farFuture()), "deleted from an empty outbox")
	names := e.saveNumbered(s, "", "m", 5)
	before := time.Now().Add(-time.Minute)
	e.done(s, e.await(s, names...)...)
	for _, zone := range []int{0, 14, -12} { // in hours; the moment counts, not how it is written
		t := before.In(time.FixedZone("", zone*60*60))
		require.Zero(e, e.deleteProcessedBefore(s, t), "deleted of what was processed after t, which is in zone %+d h", zone)
	}
	after := time.Now().Add(time.Minute)
	require.EqualValues(e, 5, e.deleteProcessedBefore(s, after.In(time.FixedZone("", -12*60*60))), "deleted of 5 "+
		"messages that "+
		"MarkProcessed has kept")
	require.Zero(e, e.deleteProcessedBefore(s, after), "deleted a second time")
}

func deleteIsStrict(e *env) {
	e.needs("Features.VirtualTime or Harness.ProcessedAt", e.features.VirtualTime || e.h.ProcessedAt != nil)
	s := e.open()
	e.save(s, unkeyed("m"))
	claimed := e.await(s, "m")
	e.done(s, claimed...)
	at := time.Now() // which stands still in virtual time
	if e.h.ProcessedAt != nil {
		at = e.h.ProcessedAt(e.T, "m")
	}
	require.Zero(e, e.deleteProcessedBefore(s, at), "a message processed at t was not processed strictly before t")
	require.EqualValues(e, 1, e.deleteProcessedBefore(s, at.Add(time.Second)), "deleted of what was processed a second "+
		"before")
}

func deleteNeverTouchesPendingOrFailed(e *env) {
	s := e.open()
	e.save(s, unkeyed("failed"), unkeyed("waits"), unkeyed("claimed"), unkeyed("processed"))
	claimed := e.await(s, "failed", "waits", "claimed", "processed")
	e.setAside(s, claimed[0])
	require.NoError(e, s.MarkFailed(e.ctx, claimed[1].ID, errBroker), "MarkFailed")
	e.done(s, claimed[3])
	delayed := unkeyed("delayed")
	delayed.AvailableAt = time.Now().Add(e.soon())
	e.save(s, delayed, unkeyed("pending"))

	require.EqualValues(e, 1, e.deleteProcessedBefore(s, farFuture()), "deleted: one message is processed, others are "+
		"pending, "+
		"claimed, delayed, waiting for their next attempt or set aside, and must never be deleted")
	if e.features.VirtualTime {
		time.Sleep(outbox.DefaultConfig().MaxRetryBackoff)
	}
	e.await(s, "waits", "delayed", "pending")
	e.done(s, claimed[2])
	e.requireSetAside(s, 1, "DeleteProcessedBefore must not touch them")
}

// setAside makes claimed messages failed for good.
func (e *env) setAside(s outbox.Store, msgs ...outbox.Message) {
	e.Helper()
	if l, ok := s.(outbox.LeasedStore); ok {
		for _, m := range msgs {
			outcome := outbox.Outcome{ID: m.ID, Status: outbox.StatusFailed, Err: errBroker}
			require.NoError(e, l.Settle(e.ctx, outcome), "Settle as failed")
		}
		return
	}
	for _, m := range e.raise(s, e.features.MaxRetries-1, msgs...) {
		require.NoError(e, s.MarkFailed(e.ctx, m.ID, errBroker), "MarkFailed at the maximum")
	}
}
