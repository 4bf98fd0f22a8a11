package storetest

import (
	"fmt"
	"slices"

	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
)

func promisePromises() []promise {
	return []promise{
		{name: "P1toP4_WhileManyWriteAndRelay_ByHand", check: func(e *env) { newWorld(e, byHand).run() }},
		{name: "P1toP4_WhileManyWriteAndRelay_UnderLeases", check: holdUnderLeases},
		{name: "P2_WhatCommitsLateIsDelivered", check: lateCommitsAreDelivered},
		{name: "P3_WhatIsRolledBackLateIsNot", check: lateRollbacksAreNotDelivered},
		{name: "P4_WhatCommitsLateComesBeforeWhatFollowedIt", check: lateCommitsKeepTheirPlace},
		{name: "P8_AnOpenTransactionDelaysNobody", check: openTransactionDelaysNobody},
	}
}

func holdUnderLeases(e *env) {
	e.needs("Features.Slots", e.features.Slots > 0)
	newWorld(e, underLeases).run()
}

func (e *env) needsTwoWriters() {
	e.Helper()
	e.needs("Features.OneWriter to be off", !e.features.OneWriter)
}

// Ids are given out before the commit, so a lower id may appear when higher ones have been read.
func lateCommitsAreDelivered(e *env) {
	e.needsTwoWriters()
	s := e.open()
	for round := range 5 {
		var open []Tx
		for i := range 4 {
			tx := e.begin(s)
			e.saveIn(s, tx, unkeyed(fmt.Sprintf("%d-%d", round, i)), keyed(fmt.Sprintf("%d-%d-k", round, i),
				fmt.Sprint("key", i)))
			open = append(open, tx)
		}
		for i, tx := range slices.Backward(open) { // the one with the lowest ids commits last
			e.commit(tx)
			e.drain(s, fmt.Sprintf("%d-%d", round, i), fmt.Sprintf("%d-%d-k", round, i))
		}
	}
	e.nothing(s, "all are processed")
}

func lateRollbacksAreNotDelivered(e *env) {
	e.needsTwoWriters()
	s := e.open()
	late := e.begin(s)
	e.saveIn(s, late, unkeyed("late"), keyed("late k", "k"))
	e.save(s, keyed("k1", "k"), unkeyed("u1"))
	e.drain(s, "k1", "u1")
	e.rollback(late)
	e.save(s, keyed("k2", "k"))
	e.drain(s, "k2")
	e.nothing(s, "their transaction was rolled back")
}

// T1 takes its ids and a lock; T3 commits higher ids, which are read; T1 commits; T2, which waited for the lock,
// commits
// still higher ids of T1's key. Whoever sees T2 must see T1 first.
func lateCommitsKeepTheirPlace(e *env) {
	e.needsTwoWriters()
	s := e.open()
	for round := range 10 {
		name := func(what string) string { return fmt.Sprintf("%s of round %d", what, round) }
		t1, t3 := e.begin(s), e.begin(s)
		e.saveIn(s, t1, keyed(name("first"), "k"))
		e.saveIn(s, t3, keyed(name("other"), "l"))
		e.commit(t3)
		if round%2 == 0 {
			e.drain(s, name("other"))
		}
		e.commit(t1)
		e.save(s, keyed(name("second"), "k"))
		want := []string{name("first"), name("second")}
		if round%2 == 1 {
			want = append(want, name("other"))
		}
		requireBefore(e, uuids(e.drain(s, want...)), name("first"), name("second"))
	}
}

func openTransactionDelaysNobody(e *env) {
	e.needsTwoWriters()
	s := e.open()
	open := e.begin(s)
	e.saveIn(s, open, keyed("k1", "k"))
	want := e.saveNumbered(s, "k", "later k", 3) // nothing serializes these with k1, so they have no order
	want = append(want, e.saveNumbered(s, "l", "l", 3)...)
	e.drain(s, want...)
	e.commit(open)
	e.drain(s, "k1")
}

// requireOrder checks that what was published first of each key is what was committed, in order.
func requireOrder(e *env, committed map[string][]string, published []outbox.Message) {
	e.Helper()
	seen := map[string]bool{}
	first := map[string][]string{}
	for _, m := range published {
		if !seen[m.UUID] {
			seen[m.UUID] = true
			first[m.Key] = append(first[m.Key], m.UUID)
		}
	}
	for key, want := range committed {
		if key == "" {
			require.ElementsMatch(e, want, first[key], "messages without a key: missing ones are lost (P2), others are "+
				"phantoms "+
				"of transactions that were rolled back (P3)")
			continue
		}
		require.ElementsMatch(e, want, first[key], "messages of key %s: missing ones are lost (P2), others are phantoms of "+
			"transactions that were rolled back (P3)", key)
		require.Equal(e, want, first[key], "first deliveries of key %s must have the order of their commits (P4)", key)
	}
	for key := range first {
		require.Contains(e, committed, key, "nothing of key %s was committed (P3)", key)
	}
}
