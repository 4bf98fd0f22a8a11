package pgxstore_test

import (
	"context"
	"math"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/internal/pgtest"
	"github.com/watermill-outbox/outbox/store/pgxstore"
)

// A relay that acquires slots reads their rows from the beginning, in pages, beside what has come late. Where a large
// transaction commits meanwhile, one of its messages may stand before the page and one of the same key in it. The second
// must not come in before the first, which a read with a cut of its own is to bring.
func TestStore_KeepsOrder_WhenALargeTransactionCommitsWhileAcquiredSlotsAreRead(t *testing.T) {
	const page = 64
	schema, pool := pgtest.Schema(t, pgtest.V15), ways["15"].open(t)
	store, err := pgxstore.New(pool, pgxstore.WithSchema(schema), pgxstore.WithLeaseTTL(testTTL))
	require.NoError(t, err)
	require.NoError(t, store.Migrate(t.Context()))
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	// Another relay has half of the slots, and all the messages are of those.
	_, err = pool.Exec(t.Context(), "UPDATE "+schema+".outbox_slots SET owner = 'another', expires_at = 'infinity' WHERE slot >= 32")
	require.NoError(t, err)
	keys, err := column[string](t.Context(), pool, `
		SELECT key FROM (SELECT 'key-' || i AS key FROM generate_series(1, 5000) i) k WHERE hashtextextended(key, 0) & 63 >= 32`)
	require.NoError(t, err)
	insert := func(db execer, topic string, n int) {
		_, err := db.Exec(t.Context(), "INSERT INTO "+schema+".outbox_messages (topic, key) SELECT $1, unnest($2::text[])", topic, keys[:n])
		require.NoError(t, err)
		keys = keys[n:]
	}

	large, err := pool.Begin(t.Context())
	require.NoError(t, err)
	defer large.Rollback(t.Context()) //nolint:errcheck // it has been committed by then
	key, others := keys[0], pool
	keys = keys[1:]
	insertKey := func(topic string) {
		_, err := large.Exec(t.Context(), "INSERT INTO "+schema+".outbox_messages (topic, key) VALUES ($1, $2)", topic, key)
		require.NoError(t, err)
	}
	insert(large, "large", 3*page)
	insert(others, "others", page/2)
	insertKey("first")
	insert(others, "others", page)
	insertKey("second")
	insert(others, "others", 3*page)

	claimOnce(t, store, page) // goes past all of them, and takes nothing
	_, err = pool.Exec(t.Context(), "UPDATE "+schema+".outbox_slots SET owner = '', expires_at = '-infinity' WHERE slot >= 32")
	require.NoError(t, err)
	for len(claimOnce(t, store, page)) == 0 { // until it looks for free slots again
		time.Sleep(testTTL / 100)
	}
	require.NoError(t, large.Commit(t.Context()))
	var order []string
	for range 100 {
		for _, m := range claimOnce(t, store, page) {
			if m.Key == key {
				order = append(order, m.Topic)
			}
		}
	}
	require.Equal(t, []string{"first", "second"}, order)
}

type execer interface {
	Exec(ctx context.Context, query string, args ...any) (pgconn.CommandTag, error)
}

// claimOnce claims messages and says at once that they were published.
func claimOnce(t *testing.T, store *pgxstore.Store, limit int) []outbox.Message {
	t.Helper()
	msgs, err := store.Claim(t.Context(), limit, math.MaxInt32)
	require.NoError(t, err)
	var outcomes []outbox.Outcome
	for _, m := range msgs {
		outcomes = append(outcomes, outbox.Outcome{ID: m.ID, Status: outbox.StatusProcessed})
	}
	require.NoError(t, store.Settle(t.Context(), outcomes...))
	return msgs
}
