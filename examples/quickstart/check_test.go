package main

import (
	"database/sql"
	"path/filepath"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/store/sqlite"
)

func newDatabase(t *testing.T) (*sql.DB, *sqlite.Store) {
	t.Helper()
	db, store, err := openStore(filepath.Join(t.TempDir(), "test.db"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	require.NoError(t, store.Migrate(t.Context()))
	_, err = db.ExecContext(t.Context(), schema)
	require.NoError(t, err)
	return db, store
}

func TestCheck_FindsBrokenPromises(t *testing.T) {
	const saved = `INSERT INTO records (number, key, data) VALUES
		(1, 'a', ''), (2, 'b', ''), (3, 'a', ''), (4, '', ''), (5, 'a', ''), (6, '', '');`
	for name, test := range map[string]struct {
		handled string
		want    report
		kept    bool
	}{
		"all is well": {
			`(1), (2), (3), (4), (5), (6)`, report{saved: 6, handled: 6}, true,
		},
		"keys have no order among them, and records without a key none at all": {
			`(6), (4), (2), (1), (3), (5)`, report{saved: 6, handled: 6}, true,
		},
		"lost": {
			`(1), (2), (4), (5), (6)`, report{saved: 6, handled: 5, lost: 1}, false,
		},
		"phantom": {
			`(1), (2), (3), (4), (5), (7), (6)`, report{saved: 6, handled: 7, phantom: 1}, false,
		},
		"out of order": {
			`(1), (2), (5), (3), (4), (6)`, report{saved: 6, handled: 6, outOfOrder: 1}, false,
		},
		"the last of a key comes first": {
			`(5), (1), (2), (3), (4), (6)`, report{saved: 6, handled: 6, outOfOrder: 2}, false,
		},
		"handled twice, which does not change the order of the first times": {
			`(1), (2), (3), (1), (4), (5), (6)`, report{saved: 6, handled: 6, twice: 1}, false,
		},
		"nothing handled": {
			``, report{saved: 6, lost: 6}, false,
		},
	} {
		t.Run(name, func(t *testing.T) {
			db, store := newDatabase(t)
			statements := saved
			if test.handled != "" {
				statements += `INSERT INTO handled (record) VALUES ` + test.handled
			}
			_, err := db.ExecContext(t.Context(), statements)
			require.NoError(t, err)
			got, err := check(t.Context(), db, store)
			require.NoError(t, err)
			require.Equal(t, test.want, got)
			if test.kept {
				require.NoError(t, got.verdict())
			} else {
				require.ErrorContains(t, got.verdict(), "a promise was broken")
			}
		})
	}
}

func TestCheck_FindsWhatIsLeftInTheOutbox(t *testing.T) {
	db, store := newDatabase(t)
	pub, err := outbox.NewPublisher(store, outbox.WithOwnTx())
	require.NoError(t, err)
	require.NoError(t, pub.Publish(topic, message.NewMessage("1", nil)))
	got, err := check(t.Context(), db, store)
	require.NoError(t, err)
	require.Equal(t, report{left: 1}, got)
	require.ErrorContains(t, got.verdict(), "1 left in the outbox")
}

func TestCheck_CountsWhatTheJournalSays(t *testing.T) {
	db, store := newDatabase(t)
	j := &journal{db}
	for range 3 {
		j.Observe(t.Context(), outbox.PublishedEvent{})
	}
	for range 2 {
		j.Observe(t.Context(), outbox.DeduplicatedEvent{})
	}
	j.Observe(t.Context(), outbox.ClaimedEvent{})
	got, err := check(t.Context(), db, store)
	require.NoError(t, err)
	require.Equal(t, report{published: 3, absorbed: 2}, got)
}
