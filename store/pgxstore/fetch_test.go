package pgxstore_test

import (
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/internal/pgtest"
)

// TRUNCATE ... RESTART IDENTITY and DROP lock the table, and then its sequence. Who does it the other way round waits for them
// while they wait for him.
func TestStore_LocksTheSequenceAfterTheTable(t *testing.T) {
	t.Parallel()
	schema := pgtest.Schema(t, pgtest.V15)
	app, relay := newProcess(t, schema, pgtest.V15.URL()), newProcess(t, schema, pgtest.V15.URL())
	require.NoError(t, app.Save(t.Context(), nil, outbox.Message{Topic: "first"}))
	require.Len(t, claimOnce(t, relay.Store, 10), 1)
	require.NoError(t, app.Save(t.Context(), nil, outbox.Message{Topic: "second"}))

	table, sequence := pgx.Identifier{schema, "outbox_messages"}, pgx.Identifier{schema, "outbox_messages_id_seq"}
	locker, err := app.pool.Begin(t.Context())
	require.NoError(t, err)
	defer locker.Rollback(t.Context()) //nolint:errcheck // it has written nothing
	_, err = locker.Exec(t.Context(), "LOCK TABLE "+table.Sanitize()+" IN ACCESS EXCLUSIVE MODE")
	require.NoError(t, err)

	claimed := make(chan error, 1)
	go func() { // it waits for the locker
		msgs, err := relay.Claim(t.Context(), 10, math.MaxInt32)
		if err == nil && len(msgs) != 1 {
			err = fmt.Errorf("%d messages were claimed", len(msgs))
		}
		claimed <- err
	}()
	require.Eventually(t, func() bool {
		waits, err := column[int](t.Context(), app.pool,
			"SELECT pid FROM pg_locks WHERE relation = $1::regclass AND NOT granted", table.Sanitize())
		return err == nil && len(waits) == 1
	}, shopPatience, time.Millisecond)
	holders, err := column[int](t.Context(), app.pool, "SELECT pid FROM pg_locks WHERE relation = $1::regclass", sequence.Sanitize())
	require.NoError(t, err)
	require.Empty(t, holders)
	require.NoError(t, locker.Rollback(t.Context()))
	require.NoError(t, <-claimed)
}

// Where all transactions are serializable, those that write would be aborted for what a relay reads, were it one of them.
func TestStore_AbortsNobody_WhereTransactionsAreSerializable(t *testing.T) {
	t.Parallel()
	schema := pgtest.Schema(t, pgtest.V15)
	serializable := func(config *pgxpool.Config) {
		config.ConnConfig.RuntimeParams["default_transaction_isolation"] = "serializable"
	}
	app, relay := newProcess(t, schema, pgtest.V15.URL(), serializable), newProcess(t, schema, pgtest.V15.URL(), serializable)
	accounts := pgx.Identifier{schema, "accounts"}.Sanitize()
	_, err := app.pool.Exec(t.Context(), "CREATE TABLE "+accounts+" AS SELECT 1 AS balance")
	require.NoError(t, err)
	require.NoError(t, app.Save(t.Context(), nil, outbox.Message{Topic: "first"}))
	require.Len(t, claimOnce(t, relay.Store, 10), 1)

	tx, err := app.pool.Begin(t.Context())
	require.NoError(t, err)
	defer tx.Rollback(t.Context()) //nolint:errcheck // it is committed, or the test has failed
	_, err = tx.Exec(t.Context(), "SELECT * FROM "+accounts)
	require.NoError(t, err)
	require.NoError(t, app.Save(t.Context(), tx, outbox.Message{Topic: "second"}))
	_, err = app.pool.Exec(t.Context(), "UPDATE "+accounts+" SET balance = 2")
	require.NoError(t, err)
	require.Empty(t, claimOnce(t, relay.Store, 10))
	require.NoError(t, tx.Commit(t.Context()))
	require.Len(t, claimOnce(t, relay.Store, 10), 1)
}

// What a read sets is for its transaction, and not for whoever has the connection next.
func TestStore_LeavesNoSettingBehind(t *testing.T) {
	t.Parallel()
	const settings = `
		SELECT name || '=' || setting FROM pg_settings
		WHERE name IN ('enable_sort', 'jit', 'max_parallel_workers_per_gather', 'plan_cache_mode', 'transaction_isolation',
		               'transaction_read_only')`
	p := newProcess(t, pgtest.Schema(t, pgtest.V15), pgtest.V15.URL(), func(config *pgxpool.Config) { config.MaxConns = 1 })
	before, err := column[string](t.Context(), p.pool, settings)
	require.NoError(t, err)
	for range 3 {
		require.NoError(t, p.Save(t.Context(), nil, outbox.Message{Topic: "topic"}))
		require.Len(t, claimOnce(t, p.Store, 10), 1)
		after, err := column[string](t.Context(), p.pool, settings)
		require.NoError(t, err)
		require.ElementsMatch(t, before, after)
	}
}
