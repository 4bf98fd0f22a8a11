package outboxtest_test

import (
	"context"
	"database/sql"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/components/delay"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/outboxtest"
	"github.com/watermill-outbox/outbox/store/memory"
	"github.com/watermill-outbox/outbox/store/sqlite"
)

func TestMessages_AreSeenByTheirTransactionOnly_UntilItCommits(t *testing.T) {
	forEachStore(t, func(t *testing.T, h harness) {
		publish(t, h.Store, nil, "topic", newMessage("earlier"))
		tx := h.begin()
		publish(t, h.Store, tx, "topic", newMessage("new"))

		require.Equal(t, []string{"earlier", "new"}, payloads(outboxtest.Messages(t, h.Store, tx, "topic")))
		require.Equal(t, []string{"earlier"}, payloads(outboxtest.Messages(t, h.Store, nil, "topic")))
		require.NoError(t, tx.Commit())
		require.Equal(t, []string{"earlier", "new"}, payloads(outboxtest.Messages(t, h.Store, nil, "topic")))
	})
}

func TestMessages_OfARolledBackTransaction_AreNone(t *testing.T) {
	forEachStore(t, func(t *testing.T, h harness) {
		tx := h.begin()
		publish(t, h.Store, tx, "topic", newMessage("new"))
		require.NoError(t, tx.Rollback())
		require.Empty(t, outboxtest.Messages(t, h.Store, nil, ""))
	})
}

func TestMessages_AreThoseOfTheTopic_InTheOrderOfSaving(t *testing.T) {
	forEachStore(t, func(t *testing.T, h harness) {
		publish(t, h.Store, nil, "a", newMessage("1"), newMessage("2"))
		publish(t, h.Store, nil, "b", newMessage("3"))
		publish(t, h.Store, nil, "a", newMessage("4"))

		require.Equal(t, []string{"1", "2", "4"}, payloads(outboxtest.Messages(t, h.Store, nil, "a")))
		require.Equal(t, []string{"3"}, payloads(outboxtest.Messages(t, h.Store, nil, "b")))
		require.Equal(t, []string{"1", "2", "3", "4"}, payloads(outboxtest.Messages(t, h.Store, nil, "")))
		require.Empty(t, outboxtest.Messages(t, h.Store, nil, "c"))
	})
}

func TestMessages_AreAsTheyWerePublished(t *testing.T) {
	forEachStore(t, func(t *testing.T, h harness) {
		msg := newMessage("payload")
		msg.Metadata.Set("name", "value")
		outbox.SetKey(msg, "key")
		bare := message.NewMessage("bare", nil)
		publish(t, h.Store, nil, "topic", msg, bare)

		got := outboxtest.Messages(t, h.Store, nil, "topic")
		require.Len(t, got, 2)
		require.True(t, msg.Equals(got[0]), "%+v became %+v", msg, got[0])
		require.True(t, bare.Equals(got[1]), "%+v became %+v", bare, got[1])
		require.Equal(t, "key", outbox.Key(got[0]))
	})
}

func TestMessages_ShowTheTimeOfADelay(t *testing.T) {
	forEachStore(t, func(t *testing.T, h harness) {
		msg := newMessage("later")
		until := time.Now().Add(time.Hour)
		delay.Message(msg, delay.Until(until))
		publish(t, h.Store, nil, "topic", msg)

		got := outboxtest.Messages(t, h.Store, nil, "topic")
		require.Len(t, got, 1)
		due, err := time.Parse(time.RFC3339, got[0].Metadata.Get(delay.DelayedUntilKey))
		require.NoError(t, err)
		require.WithinDuration(t, until, due, time.Second)
	})
}

func TestMessages_AreCopies(t *testing.T) {
	forEachStore(t, func(t *testing.T, h harness) {
		publish(t, h.Store, nil, "topic", newMessage("1"))
		outboxtest.Messages(t, h.Store, nil, "topic")[0].Metadata.Set("name", "changed")
		require.Empty(t, outboxtest.Messages(t, h.Store, nil, "topic")[0].Metadata)
	})
}

func TestMessages_LeavesThemToBePublished(t *testing.T) {
	forEachStore(t, func(t *testing.T, h harness) {
		publish(t, h.Store, nil, "topic", newMessage("1"), newMessage("2"))
		require.Len(t, outboxtest.Messages(t, h.Store, nil, "topic"), 2)
		claimed, err := h.FetchPending(context.Background(), 1)
		require.NoError(t, err)
		require.Len(t, claimed, 1)
		require.Len(t, outboxtest.Messages(t, h.Store, nil, "topic"), 2, "one that is claimed is not published yet")
		require.NoError(t, h.MarkProcessed(context.Background(), claimed[0].ID))
		require.Equal(t, []string{"2"}, payloads(outboxtest.Messages(t, h.Store, nil, "topic")))
		require.NoError(t, h.Store.(outbox.LeasedStore).Release(context.Background()))
	})
}

func TestMessages_CanBeCalledInACleanup(t *testing.T) {
	store := newMemory(t)
	t.Cleanup(func() { require.Empty(t, outboxtest.Messages(t, store, nil, "")) })
}

func TestMessages_FailsTheTest_ForWhatIsNoTransaction(t *testing.T) {
	forEachStore(t, func(t *testing.T, h harness) {
		ended := h.begin()
		require.NoError(t, ended.Rollback())
		for what, tx := range map[string]any{
			"a string":                 "tx",
			"a nil *sql.Tx":            (*sql.Tx)(nil),
			"a nil *memory.Tx":         (*memory.Tx)(nil),
			"a transaction that ended": ended,
		} {
			failure := failureOf(t, func(t testing.TB) { outboxtest.Messages(t, h.Store, tx, "") })
			require.Contains(t, failure, "outboxtest.Messages: ", what)
		}
	})
}

func TestMessages_FailsTheTest_ForAStoreThatCannotTell(t *testing.T) {
	type fiveMethods struct{ outbox.Store }
	failure := failureOf(t, func(t testing.TB) { outboxtest.Messages(t, fiveMethods{newMemory(t)}, nil, "") })
	require.Contains(t, failure, "fiveMethods cannot tell what is pending: give it a method Pending(")
	failure = failureOf(t, func(t testing.TB) { outboxtest.Messages(t, nil, nil, "") })
	require.Contains(t, failure, "a <nil> cannot tell what is pending")
}

func TestMessages_FailsTheTest_WithoutTables(t *testing.T) {
	_, db := newSQLite(t)
	store, err := sqlite.New(db, sqlite.WithPrefix("other_"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	failure := failureOf(t, func(t testing.TB) { outboxtest.Messages(t, store, nil, "") })
	require.Contains(t, failure, outbox.ErrNotMigrated.Error())
}

func TestMessages_FailsTheTest_ForADamagedMessage(t *testing.T) {
	store, db := newSQLite(t)
	publish(t, store, nil, "topic", newMessage("1"))
	_, err := db.Exec("UPDATE outbox_messages SET headers = 'not JSON'")
	require.NoError(t, err)
	failure := failureOf(t, func(t testing.TB) { outboxtest.Messages(t, store, nil, "") })
	require.Contains(t, failure, "the message with id 1 in the outbox is damaged: the headers column")
}
