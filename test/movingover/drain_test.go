package movingover_test

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/test/movingover/after"
)

func TestDrain_GoesOnPastMessagesWithoutEnvelope(t *testing.T) {
	w := newWorld(t)
	plain, _ := w.publishers(t, w.db)
	w.place(t, w.old(), "ada", 2)
	require.NoError(t, plain.Publish(forwarderTopic, message.NewMessage("plain", []byte(`{"customer": "ada"}`))))
	w.place(t, w.old(), "ada", 2)
	require.NoError(t, after.Migrate(t.Context(), w.db, w.store))
	require.NoError(t, plain.Publish(forwarderTopic, message.NewMessage("later", []byte(`[]`))))
	w.place(t, w.old(), "ada", 1)
	w.place(t, w.new(), "ada", 1)

	broker := newRecord()
	w.runNewForwarder(t, broker)
	came, duplicates := numbers(t, broker.await(t, 6))
	require.Equal(t, map[string][]int{"ada": {1, 2, 3, 4, 5, 6}}, came)
	require.Zero(t, duplicates)
	require.True(t, w.isDrained(t))

	// They are there to be looked at, until the table is dropped.
	rows, err := w.db.QueryContext(t.Context(), script(t, "unforwarded.sql"))
	require.NoError(t, err)
	defer rows.Close() //nolint:errcheck // Err tells
	var uuids []string
	for rows.Next() {
		var uuid string
		var other any
		require.NoError(t, rows.Scan(&other, &other, &uuid, &other, &other))
		uuids = append(uuids, uuid)
	}
	require.NoError(t, rows.Err())
	require.Equal(t, []string{"plain", "later"}, uuids)
}

func TestDrain_RefusesToBegin_BeforeTheRedirection(t *testing.T) {
	w := newWorld(t)
	require.NoError(t, w.store.Migrate(t.Context()))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	require.ErrorContains(t, after.RunForwarder(ctx, w.db, w.store, newRecord()), "redirect.sql")
}

func TestDrained_IsTrue_WhenNothingComesAnyMoreAndAllHasGone(t *testing.T) {
	w := newWorld(t)
	require.False(t, w.isDrained(t), "it is empty, but something may come")
	w.place(t, w.old(), "ada", 1)
	require.NoError(t, after.Migrate(t.Context(), w.db, w.store))
	require.False(t, w.isDrained(t), "no forwarder has ever run")
	broker := newRecord()
	stop := w.runOldForwarder(t, broker)
	broker.await(t, 1)
	require.Eventually(t, func() bool { return w.isDrained(t) }, patience, 20*time.Millisecond)
	stop()
	w.place(t, w.old(), "ada", 1) // into the outbox
	require.True(t, w.isDrained(t))
}

// Invariant: before the old forwarder begins again, the outbox is empty, and nothing comes into it any more.
func TestGoingBack_KeepsOrder(t *testing.T) {
	w := newWorld(t)
	require.NoError(t, after.Migrate(t.Context(), w.db, w.store))
	w.place(t, w.new(), "ada", 1)
	w.place(t, w.old(), "ada", 1)
	w.exec(t, script(t, "back.sql"))
	w.place(t, w.old(), "ada", 1)
	broker := newRecord()
	require.Equal(t, 2, w.drainOutbox(t, broker))
	w.runOldForwarder(t, broker)
	came, _ := numbers(t, broker.await(t, 3))
	require.Equal(t, map[string][]int{"ada": {1, 2, 3}}, came)
}

// In the end all that was the old forwarder's can be dropped.
func TestCleanup_LeavesTheOutbox(t *testing.T) {
	w := newWorld(t)
	require.NoError(t, after.Migrate(t.Context(), w.db, w.store))
	w.place(t, w.old(), "ada", 1)
	w.exec(t, script(t, "cleanup.sql"))
	w.place(t, w.new(), "ada", 1)
	broker := newRecord()
	require.Equal(t, 2, w.drainOutbox(t, broker))
	came, _ := numbers(t, broker.await(t, 2))
	require.Equal(t, map[string][]int{"ada": {1, 2}}, came)
	require.Zero(t, w.count(t, `SELECT count(*) FROM pg_proc WHERE proname = 'redirect_to_outbox'
		AND pronamespace = current_schema::regnamespace`))
}

// What the guide says of moving over without the redirection.
func TestWithoutRedirection_OrderIsKept_UnlessAnOldInstancePublishesAfterANewOne(t *testing.T) {
	for name, test := range map[string]struct {
		first, second   func(w *world) place
		forwarderAtOnce bool
		expected        []int
	}{
		"all old instances have stopped":                       {(*world).old, (*world).new, false, []int{1, 2}},
		"an old instance publishes after a new one":            {(*world).new, (*world).old, false, []int{2, 1}},
		"the Forwarder does not wait until the topic is empty": {(*world).old, (*world).new, true, []int{2, 1}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			require.NoError(t, w.store.Migrate(t.Context()))
			w.place(t, test.first(w), "ada", 1)
			w.place(t, test.second(w), "ada", 1)
			broker := newRecord()
			byOutbox := 0
			if test.forwarderAtOnce {
				byOutbox = w.drainOutbox(t, broker)
			}
			w.runOldForwarder(t, broker)
			broker.await(t, 1+byOutbox)
			w.drainOutbox(t, broker)
			came, _ := numbers(t, broker.await(t, 2))
			require.Equal(t, test.expected, came["ada"])
		})
	}
}

// A transaction has its id from its first write. Where it has published later than another one that began later, the old
// topic has the two in the wrong order, and the outbox in the right one.
func TestOrder_IsThatOfTransactionIDsBefore_AndOfCommitsAfter(t *testing.T) {
	w := newWorld(t)
	require.NoError(t, w.store.Migrate(t.Context()))
	placeOverlapping := func(publisher func(tx *sql.Tx) message.Publisher) {
		tx, err := w.db.BeginTx(t.Context(), nil)
		require.NoError(t, err)
		_, err = tx.ExecContext(t.Context(), `UPDATE customers SET orders = 1 WHERE id = 'bob'`) // of no matter
		require.NoError(t, err)
		quick, err := w.db.BeginTx(t.Context(), nil)
		require.NoError(t, err)
		for i, tx := range []*sql.Tx{quick, tx} {
			msg := message.NewMessage(watermill.NewUUID(), fmt.Appendf(nil, `{"customer": "ada", "number": %d}`, i+1))
			msg.Metadata.Set("customer_id", "ada")
			outbox.SetKey(msg, "ada")
			require.NoError(t, publisher(tx).Publish("orders", msg))
			require.NoError(t, tx.Commit())
		}
	}
	placeOverlapping(func(tx *sql.Tx) message.Publisher { _, p := w.publishers(t, tx); return p })
	placeOverlapping(func(tx *sql.Tx) message.Publisher { return w.store.Publisher(tx) })
	broker := newRecord()
	w.runOldForwarder(t, broker)
	broker.await(t, 2)
	require.Equal(t, 2, w.drainOutbox(t, broker))
	came, _ := numbers(t, broker.await(t, 4))
	require.Equal(t, []int{2, 1, 1, 2}, came["ada"])
}

// drainOutbox publishes what is in the outbox, whatever is in the old topic.
func (w *world) drainOutbox(t *testing.T, broker message.Publisher) int {
	t.Helper()
	fwd, err := outbox.NewForwarder(w.store, broker)
	require.NoError(t, err)
	n, err := fwd.Drain(t.Context())
	require.NoError(t, err)
	require.NoError(t, fwd.Close())
	return n
}

func (w *world) isDrained(t *testing.T) bool {
	t.Helper()
	var redirected, drained bool
	require.NoError(t, w.db.QueryRowContext(t.Context(), script(t, "drained.sql")).Scan(&redirected, &drained))
	return redirected && drained
}

// script returns a file of SQL that the guide shows.
func script(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile("after/" + name)
	require.NoError(t, err)
	return string(text)
}
