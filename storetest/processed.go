package storetest

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
)

func processedPromises() []promise {
	return []promise{
		{name: "MarkProcessed_IsNewOnce", check: processedIsNewOnce},
		{name: "MarkProcessed_IsPerGroup", check: processedIsPerGroup},
		{name: "MarkProcessed_TellsIDsApart", check: processedTellsIDsApart},
		{name: "MarkProcessed_TakesLongIDs", check: processedTakesLongIDs},
		{name: "MarkProcessed_GoesWithItsTransaction", check: processedGoesWithItsTransaction},
		{name: "MarkProcessed_WaitsForAConcurrentTransaction_ThatCommits", check: processedWaitsForACommit},
		{name: "MarkProcessed_WaitsForAConcurrentTransaction_ThatRollsBack", check: processedWaitsForARollback},
		{name: "MarkProcessed_IsNewForOneOfMany", check: processedIsNewForOneOfMany},
		{name: "MarkProcessed_TakesAnyJSONAsMetadata", check: processedTakesAnyJSON},
		{name: "MarkProcessed_RefusesMetadataThatAreNoJSON", check: processedRefusesWhatIsNoJSON},
		{name: "TakesTheHandleInPlaceOfATransaction", check: processedTakesTheHandle},
		{name: "RefusesWhatIsNoTransaction", check: processedRefusesWhatIsNoTransaction},
		{name: "PurgeProcessedBefore_DeletesAndCounts", check: purgeDeletesAndCounts},
		{name: "PurgeProcessedBefore_IsStrict", check: purgeIsStrict},
		{name: "PurgeProcessedBefore_GoesWithItsTransaction", check: purgeGoesWithItsTransaction},
	}
}

// openProcessed returns a store and its ProcessedStore.
func (e *env) openProcessed() (outbox.Store, outbox.ProcessedStore) {
	e.Helper()
	e.needs("Harness.Processed", e.h.Processed != nil)
	s := e.open()
	return s, e.h.Processed(s)
}

func (e *env) mark(p outbox.ProcessedStore, db any, group, msgID string) (isNew bool) {
	e.Helper()
	isNew, err := p.MarkProcessed(e.ctx, db, group, msgID, nil)
	require.NoError(e, err, "MarkProcessed of message %.80q for group %.80q", msgID, group)
	return isNew
}

func (e *env) isProcessed(p outbox.ProcessedStore, db any, group, msgID string) bool {
	e.Helper()
	was, err := p.IsProcessed(e.ctx, db, group, msgID)
	require.NoError(e, err, "IsProcessed of message %.80q for group %.80q", msgID, group)
	return was
}

func processedIsNewOnce(e *env) {
	s, p := e.openProcessed()
	require.False(e, e.isProcessed(p, nil, "group", "m"), "IsProcessed of a message that was never marked")
	require.True(e, e.mark(p, nil, "group", "m"), "isNew of the first MarkProcessed")
	for range 2 {
		require.True(e, e.isProcessed(p, nil, "group", "m"), "IsProcessed of a marked message")
		require.False(e, e.mark(p, nil, "group", "m"), "isNew of a MarkProcessed after the first")
	}
	tx := e.begin(s)
	require.False(e, e.mark(p, tx.Handle(), "group", "m"), "isNew of a MarkProcessed after the first, in a transaction")
	e.rollback(tx)
	other := e.h.Processed(e.open())
	require.True(e, e.isProcessed(other, nil, "group", "m"), "IsProcessed in another instance")
	require.False(e, e.mark(other, nil, "group", "m"), "isNew in another instance")
}

func processedIsPerGroup(e *env) {
	_, p := e.openProcessed()
	groups := []string{"billing", "Billing", "billing ", "billing/handler", "billing/handler2", "räumung", "a\tb"}
	for _, group := range groups {
		require.False(e, e.isProcessed(p, nil, group, "m"), "IsProcessed for group %q, after others marked the message",
			group)
		require.True(e, e.mark(p, nil, group, "m"), "isNew for group %q, after others marked the message", group)
	}
	// Concatenated they are alike.
	require.True(e, e.mark(p, nil, "a", "bc"))
	require.True(e, e.mark(p, nil, "ab", "c"), "isNew for group ab and message c, after a and bc")
	for _, n := range []int{200, 255, 300, 10_000} { // long ones may be refused, but not taken for one another
		for _, group := range []string{strings.Repeat("g", n), strings.Repeat("g", n-1) + "h"} {
			isNew, err := p.MarkProcessed(e.ctx, nil, group, "m", nil)
			require.True(e, err != nil && n > 200 || isNew, "isNew for a group with a name of %d bytes (error: %v)", n, err)
		}
	}
}

func processedTellsIDsApart(e *env) {
	_, p := e.openProcessed()
	ids := []string{
		"m", "M", "m ", " m", "mm", "é", "e\u0301", "e", "ｍ", "m\u200b", "m\n", "0", "00", "1e0", "1.0", "🚀", "'", `"`, `\`,
		`\\`, "%", "_", "null", "018f2b1e-7d4c-7000-8000-00000000000a", "018F2B1E-7D4C-7000-8000-00000000000A",
	}
	for _, id := range ids {
		require.True(e, e.mark(p, nil, "group", id), "isNew of message %q, after others: ids must be compared byte by "+
			"byte", id)
	}
	for _, id := range ids {
		require.False(e, e.mark(p, nil, "group", id), "isNew of message %q, the second time", id)
	}
	marked := map[string]bool{} // a store may refuse these, but not take one for another
	for _, id := range []string{"nul\x00a", "nul\x00b", "nul", "\xff", "\xfe", "\ufffd"} {
		isNew, err := p.MarkProcessed(e.ctx, nil, "group", id, nil)
		if err == nil {
			require.True(e, isNew, "message %q was taken for another", id)
			marked[id] = true
		}
	}
	for id := range marked {
		require.True(e, e.isProcessed(p, nil, "group", id), "IsProcessed of the marked message %q", id)
	}
}

func processedTakesLongIDs(e *env) {
	_, p := e.openProcessed()
	var random strings.Builder // what repeats can be compressed, and fits an index that it should not fit
	for i := 0; random.Len() < 10<<10; i++ {
		fmt.Fprintf(&random, "%x-", i*i*2654435761)
	}
	for _, long := range []string{strings.Repeat("x", 10<<10), strings.Repeat("🚀", 10<<8), random.String()} {
		for _, id := range []string{long, long + "a", long + "b"} { // which differ at their ends
			require.True(e, e.mark(p, nil, "group", id), "isNew of a message with an id of %d bytes", len(id))
			require.False(e, e.mark(p, nil, "group", id), "isNew of that message, the second time")
		}
	}
}

func processedGoesWithItsTransaction(e *env) {
	s, p := e.openProcessed()
	tx := e.begin(s)
	require.True(e, e.mark(p, tx.Handle(), "group", "m"), "isNew in a transaction")
	require.True(e, e.isProcessed(p, tx.Handle(), "group", "m"), "IsProcessed within the transaction that marked it")
	require.False(e, e.mark(p, tx.Handle(), "group", "m"), "isNew within the transaction that marked it")
	require.NoError(e, e.h.Write(e.ctx, tx.Handle(), "rolled back"))
	e.rollback(tx)
	require.False(e, e.isProcessed(p, nil, "group", "m"), "IsProcessed after the transaction that marked it was rolled "+
		"back")

	tx = e.begin(s)
	require.True(e, e.mark(p, tx.Handle(), "group", "m"), "isNew after the transaction that marked it was rolled back")
	require.NoError(e, e.h.Write(e.ctx, tx.Handle(), "committed"))
	e.saveIn(s, tx, unkeyed("produced"))
	e.commit(tx)
	require.True(e, e.isProcessed(p, nil, "group", "m"), "IsProcessed after the commit of the transaction that marked it")
	require.False(e, e.mark(p, nil, "group", "m"), "isNew after the commit of the transaction that marked it")
	require.Equal(e, []string{"committed"}, e.written(), "business writes, which must commit together with the mark")
	e.await(s, "produced")
}

func processedWaitsForACommit(e *env)   { processedWaits(e, Tx.Commit, false) }
func processedWaitsForARollback(e *env) { processedWaits(e, Tx.Rollback, true) }

func processedWaits(e *env, end func(Tx) error, wantNew bool) {
	const grace = 50 * time.Millisecond // for a call that does not wait to be caught at it
	s, p := e.openProcessed()
	second := map[string]func(msgID string) (bool, error){
		"nil": func(msgID string) (bool, error) { return p.MarkProcessed(e.ctx, nil, "group", msgID, nil) },
	}
	if !e.features.OneWriter {
		other := e.open()
		tx := e.begin(other)
		second["a transaction of another instance"] = func(msgID string) (bool, error) {
			isNew, err := e.h.Processed(other).MarkProcessed(e.ctx, tx.Handle(), "group", msgID, nil)
			return isNew, errors.Join(err, tx.Commit())
		}
	}
	for name, markAgain := range second {
		type result struct {
			isNew bool
			err   error
		}
		first := e.begin(s)
		require.True(e, e.mark(p, first.Handle(), "group", name), "isNew")
		done := make(chan result, 1)
		go func() { // ends when the first transaction has, or with e.ctx
			isNew, err := markAgain(name)
			done <- result{isNew, err}
		}()
		select {
		case r := <-done:
			require.Fail(e, "MarkProcessed must wait while another transaction has marked the same message and not ended",
				"with %s as db it returned %t, %v", name, r.isNew, r.err)
		case <-time.After(grace):
		}
		require.NoError(e, end(first))
		r := <-done
		require.NoError(e, r.err, "MarkProcessed with %s as db, after it had waited for another transaction", name)
		require.Equal(e, wantNew, r.isNew, "isNew with %s as db, after the transaction that had marked the message before "+
			"has "+
			"ended", name)
	}
}

func processedIsNewForOneOfMany(e *env) {
	const deliveries = 8
	s, p := e.openProcessed()
	other := e.h.Processed(e.open())
	_ = s
	for _, id := range numbered("m", 5) {
		var count atomic.Int32
		e.together(deliveries, func(i int) error {
			isNew, err := []outbox.ProcessedStore{p, other}[i%2].MarkProcessed(e.ctx, nil, "group", id, nil)
			if isNew {
				count.Add(1)
			}
			return err
		})
		require.EqualValues(e, 1, count.Load(), "calls of MarkProcessed that returned isNew, of %d at once for one message",
			deliveries)
	}
}

func processedTakesAnyJSON(e *env) {
	_, p := e.openProcessed()
	for _, metadata := range []string{
		`{}`, `{"a":1}`, `[]`, `null`, `"text"`, `1e400`, `{"a":1,"a":2}`, `{"nul":"\u0000"}`, `{"surrogate":"\ud800"}`,
		` {"spaces" : [ ] } `, `{"ü":"🚀"}`, strings.Repeat("[", 500) + strings.Repeat("]", 500),
		`"` + strings.Repeat("x", 1<<16) + `"`,
	} {
		require.True(e, json.Valid([]byte(metadata)))
		isNew, err := p.MarkProcessed(e.ctx, nil, "group", "with "+metadata, json.RawMessage(metadata))
		require.NoError(e, err, "MarkProcessed with metadata that are valid JSON: %.100q", metadata)
		require.True(e, isNew, "isNew with metadata %.100q", metadata)
	}
}

func processedRefusesWhatIsNoJSON(e *env) {
	s, p := e.openProcessed()
	for _, metadata := range []string{`{`, `nul`, `{"a":}`, `{} {}`, "\x00", "text", `'a'`} {
		tx := e.begin(s)
		_, err := p.MarkProcessed(e.ctx, tx.Handle(), "group", "m", json.RawMessage(metadata))
		require.Error(e, err, "MarkProcessed with metadata that are no JSON: %q", metadata)
		_ = tx.Commit() // which a database may refuse by now
		_, err = p.MarkProcessed(e.ctx, nil, "group", "m", json.RawMessage(metadata))
		require.Error(e, err, "MarkProcessed with metadata that are no JSON: %q", metadata)
	}
	require.False(e, e.isProcessed(p, nil, "group", "m"), "IsProcessed after every MarkProcessed was refused")
}

func processedTakesTheHandle(e *env) {
	e.needs("Harness.DB", e.h.DB != nil)
	_, p := e.openProcessed()
	require.False(e, e.isProcessed(p, e.h.DB, "group", "m"), "IsProcessed with the handle")
	require.True(e, e.mark(p, e.h.DB, "group", "m"), "isNew with the handle")
	require.False(e, e.mark(p, nil, "group", "m"), "isNew with nil, after it was marked with the handle")
	n, err := p.PurgeProcessedBefore(e.ctx, e.h.DB, farFuture())
	require.NoError(e, err, "PurgeProcessedBefore with the handle")
	require.EqualValues(e, 1, n, "purged with the handle")
}

func processedRefusesWhatIsNoTransaction(e *env) {
	_, p := e.openProcessed()
	for name, db := range map[string]any{
		"a string": "tx", "a number": 1, "an empty struct": struct{}{}, "a nil *int": (*int)(nil),
		"a nil func": (func())(nil),
	} {
		_, err := p.MarkProcessed(e.ctx, db, "group", "m", nil)
		require.ErrorIs(e, err, outbox.ErrInvalidTx, "MarkProcessed with %s for a transaction", name)
		require.ErrorContains(e, err, fmt.Sprintf("%T", db), "the error must name the type that MarkProcessed got")
		_, err = p.IsProcessed(e.ctx, db, "group", "m")
		require.ErrorIs(e, err, outbox.ErrInvalidTx, "IsProcessed with %s for a transaction", name)
		_, err = p.PurgeProcessedBefore(e.ctx, db, farFuture())
		require.ErrorIs(e, err, outbox.ErrInvalidTx, "PurgeProcessedBefore with %s for a transaction", name)
	}
	require.False(e, e.isProcessed(p, nil, "group", "m"), "IsProcessed after every MarkProcessed was refused")
}

func (e *env) purge(p outbox.ProcessedStore, db any, t time.Time) int64 {
	e.Helper()
	n, err := p.PurgeProcessedBefore(e.ctx, db, t)
	require.NoError(e, err, "PurgeProcessedBefore")
	return n
}

func purgeDeletesAndCounts(e *env) {
	_, p := e.openProcessed()
	require.Zero(e, e.purge(p, nil, farFuture()), "purged where nothing is recorded")
	before := time.Now().Add(-time.Minute)
	for _, id := range numbered("m", 3) {
		e.mark(p, nil, "group", id)
		e.mark(p, nil, "other group", id)
	}
	for _, zone := range []int{0, 14, -12} { // in hours; the moment counts, not how it is written
		t := before.In(time.FixedZone("", zone*60*60))
		require.Zero(e, e.purge(p, nil, t), "purged of what was recorded after t, which is in zone %+d h", zone)
	}
	require.False(e, e.mark(p, nil, "group", "m1"), "isNew after a purge of nothing")
	after := time.Now().Add(time.Minute)
	require.EqualValues(e, 6, e.purge(p, nil, after.In(time.FixedZone("", -12*60*60))), "purged of three messages in "+
		"two groups")
	require.Zero(e, e.purge(p, nil, after), "purged a second time")
	require.False(e, e.isProcessed(p, nil, "group", "m1"), "IsProcessed of what was purged")
	require.True(e, e.mark(p, nil, "group", "m1"), "isNew of what was purged")
}

func purgeIsStrict(e *env) {
	e.needs("Features.VirtualTime or Harness.MarkedAt", e.features.VirtualTime || e.h.MarkedAt != nil)
	_, p := e.openProcessed()
	e.mark(p, nil, "group", "m")
	at := time.Now() // which stands still in virtual time
	if e.h.MarkedAt != nil {
		at = e.h.MarkedAt(e.T, "group", "m")
	}
	require.Zero(e, e.purge(p, nil, at), "what was recorded at t was not recorded strictly before t")
	require.EqualValues(e, 1, e.purge(p, nil, at.Add(time.Second)), "purged of what was recorded a second before")
}

func purgeGoesWithItsTransaction(e *env) {
	s, p := e.openProcessed()
	e.mark(p, nil, "group", "m")
	tx := e.begin(s)
	require.EqualValues(e, 1, e.purge(p, tx.Handle(), farFuture()), "purged in a transaction")
	e.rollback(tx)
	require.True(e, e.isProcessed(p, nil, "group", "m"), "IsProcessed after the transaction of the purge was rolled back")
	tx = e.begin(s)
	require.EqualValues(e, 1, e.purge(p, tx.Handle(), farFuture()), "purged in a transaction")
	e.commit(tx)
	require.False(e, e.isProcessed(p, nil, "group", "m"), "IsProcessed after the transaction of the purge was committed")
}
