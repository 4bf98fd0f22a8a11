package docs_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/internal/pgtest"
	"github.com/watermill-outbox/outbox/migrations"
	"github.com/watermill-outbox/outbox/store/memory"
	"github.com/watermill-outbox/outbox/store/pgxstore"
)

// docs:begin pool
func openRelayPool(ctx context.Context, databaseURL string) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(databaseURL)
	if err != nil {
		return nil, err
	}
	config.MaxConns = 5 // what a Forwarder uses at most
	return pgxpool.NewWithConfig(ctx, config)
}

// docs:end pool

// docs:begin shutdown
func serve(store outbox.Store, publisher message.Publisher) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	forwarder, err := outbox.NewForwarder(store, publisher, outbox.WithCloseTimeout(20*time.Second))
	if err != nil {
		return err
	}
	return forwarder.Run(ctx) // after SIGTERM for up to 20 s: waits for Publish calls, marks them, hands over
}

// docs:end shutdown

func TestOperations_ASignalStopsTheForwarder(t *testing.T) {
	store, err := memory.New()
	require.NoError(t, err)
	publisher, err := outbox.NewPublisher(store, outbox.WithOwnTx())
	require.NoError(t, err)
	require.NoError(t, publisher.Publish("orders.placed", orderPlaced("42")))
	require.NoError(t, serve(store, brokerFunc(func(string, *message.Message) error {
		return syscall.Kill(os.Getpid(), syscall.SIGTERM)
	})))
	stats, err := store.Stats(t.Context())
	require.NoError(t, err)
	require.Zero(t, stats.Pending)
}

// docs:begin migration
func writeMigration(file string) error {
	statements, err := migrations.SQL("postgres", 0, 1) // from nothing to version 1
	if err != nil {
		return err
	}
	return os.WriteFile(file, []byte(statements), 0o600)
}

// docs:end migration

func TestOperations_TablesCanBeMadeByAnotherTool(t *testing.T) {
	file := filepath.Join(t.TempDir(), "0001_outbox.sql")
	require.NoError(t, writeMigration(file))
	statements, err := os.ReadFile(file)
	require.NoError(t, err)
	pool := newPool(t)
	_, err = pool.Exec(t.Context(), string(statements))
	require.NoError(t, err)
	store, err := pgxstore.New(pool)
	require.NoError(t, err)
	require.NoError(t, store.CheckSchema(t.Context()))
	require.ErrorContains(t, store.Migrate(t.Context()), "was not created by migrations.Up")
}

// Invariant: of a pool that has more, a Forwarder takes no more connections than the page says, so that those are enough.
func TestOperations_APoolOfFiveConnectionsIsEnough(t *testing.T) {
	store, pool := newStore(t)
	const backlog = 5_000
	messages := make([]*message.Message, backlog)
	for i := range messages {
		messages[i] = orderPlaced(strconv.Itoa(i))
	}
	publisher, err := outbox.NewPublisher(store, outbox.WithOwnTx())
	require.NoError(t, err)
	require.NoError(t, publisher.Publish("orders.placed", messages...))
	enough, err := openRelayPool(t.Context(), pool.Config().ConnString())
	require.NoError(t, err)
	defer enough.Close()
	config := enough.Config()
	config.MaxConns *= 4
	relayPool, err := pgxpool.NewWithConfig(t.Context(), config)
	require.NoError(t, err)
	defer relayPool.Close()
	relay, err := pgxstore.New(relayPool)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, relay.Close()) })
	forwarder, err := outbox.NewForwarder(relay, brokerFunc(func(string, *message.Message) error { return nil }),
		outbox.WithRetention(time.Hour))
	require.NoError(t, err)
	var running sync.WaitGroup
	running.Go(func() { // ends when it is closed
		if err := forwarder.Run(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	require.Eventually(t, func() bool {
		stats, err := store.Stats(t.Context())
		require.NoError(t, err)
		return stats.Pending == 0
	}, patience, time.Millisecond)
	require.NoError(t, forwarder.Close())
	running.Wait()
	require.Equal(t, backlog, count(t, pool, "SELECT count(*) FROM outbox_archive WHERE status = 'processed'"))
	// The pool makes one only where all others are taken.
	require.LessOrEqual(t, relayPool.Stat().TotalConns(), enough.Config().MaxConns)
}

// docs:begin stats
func health(ctx context.Context, store outbox.StatsReporter) error {
	stats, err := store.Stats(ctx)
	if err != nil {
		return err
	}
	if stats.OldestAge > time.Minute || stats.Failed > 0 {
		return fmt.Errorf("the outbox needs attention: %d messages are pending, the oldest is due for %v, %d were set aside",
			stats.Pending, stats.OldestAge, stats.Failed)
	}
	return nil
}

// docs:end stats

func TestOperations_AnOldMessageIsReported(t *testing.T) {
	store, err := memory.New()
	require.NoError(t, err)
	publisher, err := outbox.NewPublisher(store, outbox.WithOwnTx())
	require.NoError(t, err)
	require.NoError(t, publisher.Publish("orders.placed", orderPlaced("42")))
	require.NoError(t, health(t.Context(), store))
	store.Advance(2 * time.Minute)
	require.ErrorContains(t, health(t.Context(), store), "1 messages are pending")
}

// The privileges on the page are enough to publish, to relay and to handle.
func TestOperations_ThePrivilegesOnThePageAreEnough(t *testing.T) {
	page, err := os.ReadFile("../../docs/operations.md")
	require.NoError(t, err)
	_, rest, found := strings.Cut(string(page), "```sql\nGRANT")
	require.True(t, found)
	grants, _, _ := strings.Cut("GRANT"+rest, "```")
	store, pool := newStore(t)
	roles := map[string]string{}
	for _, role := range []string{"publishing", "relaying", "handling"} {
		roles[role] = role + "_" + strings.ToLower(rand.Text()[:16])
		pgtest.Exec(t, pgtest.V15, "CREATE ROLE "+roles[role])
		t.Cleanup(func() {
			_, err := pool.Exec(context.Background(), "DROP OWNED BY "+roles[role])
			require.NoError(t, err)
			pgtest.Exec(t, pgtest.V15, "DROP ROLE "+roles[role])
		})
		grants = regexp.MustCompile(`\b`+role+`\b`).ReplaceAllString(grants, roles[role])
	}
	_, err = pool.Exec(t.Context(), grants)
	require.NoError(t, err)
	as := func(role string) *pgxstore.Store {
		config := pool.Config()
		config.ConnConfig.RuntimeParams["role"] = roles[role]
		own, err := pgxpool.NewWithConfig(t.Context(), config)
		require.NoError(t, err)
		t.Cleanup(own.Close)
		s, err := pgxstore.New(own)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, s.Close()) })
		return s
	}

	require.NoError(t, as("publishing").InTx(t.Context(), func(_ context.Context, tx pgx.Tx) error {
		return store.Publisher(tx).Publish("orders.placed", orderPlaced("42"), orderPlaced("43"))
	}))
	relay := as("relaying")
	require.NoError(t, forwardAll(t.Context(), relay, brokerFunc(func(string, *message.Message) error { return nil })))
	_, err = relay.Stats(t.Context())
	require.NoError(t, err)
	processed := as("handling").Processed()
	for _, isNew := range []bool{true, false} {
		marked, err := processed.MarkProcessed(t.Context(), nil, "billing", "42", nil)
		require.NoError(t, err)
		require.Equal(t, isNew, marked)
	}
	_, err = processed.PurgeProcessedBefore(t.Context(), nil, time.Now())
	require.NoError(t, err)
}
