package storetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
)

func savePromises() []promise {
	return []promise{
		{name: "IsAtomicWithTheCallersTransaction", check: saveIsAtomicWithTheCallersTransaction},
		{name: "WritesAllMessagesOfACallOrNone", check: saveWritesAllMessagesOfACallOrNone},
		{name: "WritesNothing_WhenItsContextIsCancelled", check: saveWritesNothingWhenItsContextIsCancelled},
		{name: "CommitsATransactionOfItsOwn_WhenTxIsNil", check: saveCommitsATransactionOfItsOwn},
		{name: "RefusesWhatIsNoTransaction", check: saveRefusesWhatIsNoTransaction},
		{name: "RefusesATransactionThatHasEnded", check: saveRefusesATransactionThatHasEnded},
		{name: "DoesNothing_WithoutMessages", check: saveDoesNothingWithoutMessages},
		{name: "IsUndoneByARollbackToASavepoint", check: saveIsUndoneByARollbackToASavepoint},
		{name: "LetsSeveralCallsShareATransaction", check: saveLetsSeveralCallsShareATransaction},
		{name: "TakesManyMessagesAtOnce", check: saveTakesManyMessages},
		{name: "IsSafeForConcurrentUse", check: saveIsSafeForConcurrentUse},
	}
}

func saveIsAtomicWithTheCallersTransaction(e *env) {
	s := e.open()
	tx := e.begin(s)
	e.saveIn(s, tx, unkeyed("rolled back"))
	require.NoError(e, e.h.Write(e.ctx, tx.Handle(), "rolled back"), "Harness.Write")
	e.rollback(tx)

	tx = e.begin(s)
	e.saveIn(s, tx, unkeyed("committed"))
	require.NoError(e, e.h.Write(e.ctx, tx.Handle(), "committed"), "Harness.Write")
	e.commit(tx)

	require.Equal(e, []string{"committed"}, e.written(), "business writes, which Save must neither commit nor roll back")
	require.Equal(e, []string{"committed"}, uuids(e.arrivals(s)), "a message is in the outbox if, and only if, the "+
		"caller's transaction committed")
}

func (e *env) written() []string {
	e.Helper()
	values, err := e.h.Written(e.ctx)
	require.NoError(e, err, "Harness.Written")
	return values
}

// What a store refuses differs, and none has to refuse any of these, which a Publisher does. But what it refuses must
// not leave half of a call behind, even if the caller commits all the same.
func saveWritesAllMessagesOfACallOrNone(e *env) {
	s := e.open()
	for name, change := range map[string]func(*outbox.Message){
		"an empty topic":         func(m *outbox.Message) { m.Topic = "" },
		"a NUL in the topic":     func(m *outbox.Message) { m.Topic = "a\x00b" },
		"a topic not in UTF-8":   func(m *outbox.Message) { m.Topic = "\xff" },
		"a topic of 64 KiB":      func(m *outbox.Message) { m.Topic = strings.Repeat("t", 1<<16) },
		"a NUL in the key":       func(m *outbox.Message) { m.Key = "a\x00b" },
		"a key of 64 KiB":        func(m *outbox.Message) { m.Key = strings.Repeat("k", 1<<16) },
		"a NUL in the UUID":      func(m *outbox.Message) { m.UUID += "\x00" },
		"a UUID of 64 KiB":       func(m *outbox.Message) { m.UUID += strings.Repeat("u", 1<<16) },
		"headers not in UTF-8":   func(m *outbox.Message) { m.Headers = map[string]string{"\xff": "\xff"} },
		"nothing wrong about it": func(*outbox.Message) {},
	} {
		suspect := unkeyed(name)
		change(&suspect)
		tx := e.begin(s)
		require.NoError(e, e.h.Write(e.ctx, tx.Handle(), name), "Harness.Write")
		err := s.Save(e.ctx, tx.Handle(), unkeyed("before"), suspect, unkeyed("after"))
		committed := tx.Commit() == nil
		_ = tx.Rollback()

		arrived := e.arrivals(s)
		if err == nil && committed {
			require.Len(e, arrived, 3, "Save of three messages, one with %s, returned no error: all must be there", name)
		} else {
			require.Empty(e, uuids(arrived), "Save of three messages, one with %s, returned %v: none may be there", name, err)
		}
		require.Equal(e, committed, slices.Contains(e.written(), name), "%s: business writes must follow the commit", name)
		e.done(s, arrived...)
	}
}

func saveWritesNothingWhenItsContextIsCancelled(e *env) {
	s := e.open()
	cancelled, cancel := context.WithCancel(e.ctx)
	cancel()
	tx := e.begin(s)
	inTx := s.Save(cancelled, tx.Handle(), unkeyed("in a tx 1"), unkeyed("in a tx 2"))
	committed := tx.Commit() == nil
	ownTx := s.Save(cancelled, nil, unkeyed("own tx 1"), unkeyed("own tx 2"))

	want := []string{}
	if inTx == nil && committed {
		want = append(want, "in a tx 1", "in a tx 2")
	}
	if ownTx == nil {
		want = append(want, "own tx 1", "own tx 2")
	}
	require.ElementsMatch(e, want, uuids(e.arrivals(s)), "messages must be there where Save with a cancelled context "+
		"returned nil, and only there: in the caller's transaction it returned %v, in its own %v", inTx, ownTx)
}

func saveCommitsATransactionOfItsOwn(e *env) {
	s := e.open()
	require.NoError(e, s.Save(e.ctx, nil, unkeyed("a"), unkeyed("b")), "Save without a transaction")
	require.ElementsMatch(e, []string{"a", "b"}, uuids(e.arrivals(s)), "a plain nil is a transaction of the store's own, "+
		"which Save commits")
}

func saveRefusesWhatIsNoTransaction(e *env) {
	s := e.open()
	foreign := map[string]any{
		"a string": "tx", "a number": 1, "an empty struct": struct{}{}, "a nil *int": (*int)(nil),
		"a nil func": (func())(nil), "a context": e.ctx,
	}
	maps.Copy(foreign, e.h.ForeignTxs)
	tx := e.begin(s)
	if t := reflect.TypeOf(tx.Handle()); t.Kind() == reflect.Pointer {
		foreign["a typed nil"] = reflect.Zero(t).Interface()
	}
	e.rollback(tx)
	for name, value := range foreign {
		err := s.Save(e.ctx, value, unkeyed(name))
		require.ErrorIs(e, err, outbox.ErrInvalidTx, "Save in what is no transaction of the store's: %s (%T)", name, value)
		require.ErrorContains(e, err, fmt.Sprintf("%T", value), "the error must name the type that Save got, for %s", name)
	}
	e.nothing(s, "Save was given no transaction to write them in, and must not commit by itself")
}

func saveRefusesATransactionThatHasEnded(e *env) {
	s := e.open()
	tx := e.begin(s)
	e.commit(tx)
	require.Error(e, s.Save(e.ctx, tx.Handle(), unkeyed("after the commit")), "Save in a committed transaction")
	tx = e.begin(s)
	e.rollback(tx)
	require.Error(e, s.Save(e.ctx, tx.Handle(), unkeyed("after the rollback")), "Save in a transaction rolled back")
	e.nothing(s, "their transactions had ended before Save")
}

func saveDoesNothingWithoutMessages(e *env) {
	s := e.open()
	require.NoError(e, s.Save(e.ctx, nil), "Save of no messages, without a transaction")
	tx := e.begin(s)
	require.NoError(e, s.Save(e.ctx, tx.Handle()), "Save of no messages")
	e.commit(tx)
	e.nothing(s, "none was saved")
}

func saveIsUndoneByARollbackToASavepoint(e *env) {
	e.needs("Features.Savepoints", e.features.Savepoints)
	s := e.open()
	tx, ok := e.begin(s).(SavepointTx)
	require.True(e, ok, "Harness.Begin must return a SavepointTx")
	e.saveIn(s, tx, keyed("before", "k"))
	require.NoError(e, tx.Savepoint(e.ctx, "here"))
	e.saveIn(s, tx, keyed("undone", "k"))
	require.NoError(e, tx.RollbackTo(e.ctx, "here"))
	e.saveIn(s, tx, keyed("after", "k"))
	e.commit(tx)
	require.Equal(e, []string{"before", "after"}, uuids(e.drain(s, "before", "after")), "order of a key")
	e.nothing(s, "a message saved behind a savepoint goes when that is rolled back")
}

func saveLetsSeveralCallsShareATransaction(e *env) {
	s, other := e.open(), e.open()
	tx := e.begin(s)
	e.saveIn(s, tx, keyed("k1", "k"), keyed("k2", "k"))
	e.saveIn(other, tx, keyed("k3", "k")) // a store value holds nothing that a transaction depends on
	e.saveIn(s, tx, keyed("k4", "k"))
	e.commit(tx)
	want := numbered("k", 4)
	require.Equal(e, want, uuids(e.drain(s, want...)), "messages of a key come in the order of the Save calls")
}

func saveIsSafeForConcurrentUse(e *env) {
	const writers, each = 8, 10
	s := e.open()
	e.together(writers, func(w int) error {
		var errs []error
		for i := range each {
			errs = append(errs, s.Save(e.ctx, nil, keyed(fmt.Sprintf("%d-%d", w, i), fmt.Sprint(w))))
		}
		return errors.Join(errs...)
	})
	var want []string
	for w := range writers {
		for i := range each {
			want = append(want, fmt.Sprintf("%d-%d", w, i))
		}
	}
	next := map[string]int{}
	for _, m := range e.drain(s, want...) {
		require.Equal(e, fmt.Sprintf("%s-%d", m.Key, next[m.Key]), m.UUID, "order within the key of one writer")
		next[m.Key]++
	}
}

// Statements have a largest number of parameters, and a user's transaction may publish more.
func saveTakesManyMessages(e *env) {
	const total = 12_000
	s := e.open()
	msgs := make([]outbox.Message, total)
	for i := range msgs {
		msgs[i] = unkeyed(fmt.Sprint(i))
	}
	tx := e.begin(s)
	e.saveIn(s, tx, msgs...)
	e.rollback(tx)
	e.nothing(s, "their transaction was rolled back")

	e.save(s, msgs...)
	claimed := map[string]outbox.Message{}
	e.poll("FetchPending returns all messages of one large Save", func() bool {
		for _, m := range e.fetch(s, many) {
			if _, twice := claimed[m.UUID]; twice {
				require.Fail(e, "a message was claimed twice", m.UUID)
			}
			claimed[m.UUID] = m
		}
		return len(claimed) == total
	})
	e.done(s, slices.Collect(maps.Values(claimed))...)
	e.handOver(s)
	e.nothing(e.open(), "all are processed")
}
