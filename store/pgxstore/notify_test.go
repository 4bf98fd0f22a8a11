package pgxstore_test

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/internal/pgdialect"
	"github.com/watermill-outbox/outbox/internal/pgtest"
	"github.com/watermill-outbox/outbox/internal/sqlstore"
	"github.com/watermill-outbox/outbox/store/pgxstore"
)

// statements are what has been sent through a pool, and by those that listen for it.
type statements struct {
	mu  sync.Mutex
	all []string
}

func (s *statements) TraceQueryStart(ctx context.Context, _ *pgx.Conn, query pgx.TraceQueryStartData) context.Context {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, query.SQL)
	return ctx
}

func (s *statements) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// last returns the last statement with a word in it, or nothing.
func (s *statements) last(word string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sql := range slices.Backward(s.all) {
		if strings.Contains(sql, word) {
			return sql
		}
	}
	return ""
}

// process is an application's: it has a pool and a store of its own.
type process struct {
	*pgxstore.Store
	pool *pgxpool.Pool
	sent *statements
}

func newProcess(t *testing.T, schema, url string, change ...func(*pgxpool.Config)) *process {
	t.Helper()
	config, err := pgxpool.ParseConfig(url)
	require.NoError(t, err)
	p := &process{sent: &statements{}}
	config.ConnConfig.Tracer = p.sent
	for _, f := range change {
		f(config)
	}
	p.pool, err = pgxpool.NewWithConfig(t.Context(), config)
	require.NoError(t, err)
	t.Cleanup(p.pool.Close)
	p.Store, err = pgxstore.New(p.pool, pgxstore.WithSchema(schema))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Close()) })
	require.NoError(t, p.Migrate(t.Context()))
	return p
}

// listen has Notify run until the test ends. What it returns waits for it to call wake.
func (p *process) listen(t *testing.T) (awaitWake func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	woken, ended := make(chan struct{}), make(chan error, 1)
	go func() { // ends with ctx
		ended <- p.Notify(ctx, func() {
			select {
			case woken <- struct{}{}:
			case <-ctx.Done():
			}
		})
	}()
	t.Cleanup(func() {
		cancel()
		<-ended //nolint:errcheck // it tells that it was cancelled
	})
	return func() {
		t.Helper()
		select {
		case <-woken:
		case err := <-ended:
			ended <- err
			t.Fatalf("Notify has returned %v", err)
		case <-time.After(shopPatience):
			t.Fatal("nobody is woken")
		}
	}
}

// A process sends a signal at most every 100 ms, and leaves what others publish meanwhile to it. Where that signal rides on a
// transaction that stays open it does not come, and a relay that knows of the transaction does without. (One that has been
// idle since before the transaction began does not know of it until it looks.)
func TestStore_NotifyWakesForWhatIsCommitted_WhileTheSignalIsHeldUp(t *testing.T) {
	t.Parallel()
	schema := pgtest.Schema(t, pgtest.V15)
	app, other, relay := newProcess(t, schema, pgtest.V15.URL()), newProcess(t, schema, pgtest.V15.URL()), newProcess(t, schema, pgtest.V15.URL())
	awaitWake := relay.listen(t)
	awaitWake() // for what was published before
	claimOnce(t, relay.Store, 10)

	held, err := app.pool.Begin(t.Context())
	require.NoError(t, err)
	defer held.Rollback(t.Context()) //nolint:errcheck // nobody needs it
	require.NoError(t, app.Save(t.Context(), held, outbox.Message{Topic: "held"}))
	require.NoError(t, other.Save(t.Context(), nil, outbox.Message{Topic: "other"}))
	awaitWake()
	require.Len(t, claimOnce(t, relay.Store, 10), 1)
	require.True(t, relay.Expecting(), "the relay has met the transaction that is held")

	for silent := false; !silent; { // on a machine that is slow it may not be the first time
		require.NoError(t, app.Save(t.Context(), held, outbox.Message{Topic: "held"}))
		require.NoError(t, app.Save(t.Context(), nil, outbox.Message{Topic: "committed"}))
		silent = !strings.Contains(app.sent.last("INSERT"), "pg_notify")
	}
	var committed []outbox.Message
	for len(committed) == 0 || committed[len(committed)-1].Topic != "committed" {
		awaitWake()
		awaitWake() // no echo of the one before
		committed = claimOnce(t, relay.Store, 1000)
	}

	require.NoError(t, held.Commit(t.Context()))
	for begun := time.Now(); relay.Expecting(); {
		require.Less(t, time.Since(begun), shopPatience, "it is woken for ever")
		awaitWake()
		claimOnce(t, relay.Store, 1000)
	}
}

// Behind a pooler that shares its connections out, whoever gets one next would hear what another has asked for.
func TestStore_NotifyDoesNotListenThroughAPooler(t *testing.T) {
	t.Parallel()
	schema := pgtest.Schema(t, pgtest.PgBouncer)
	p := newProcess(t, schema, pgtest.PgBouncer.URL()+ways["pgbouncer"].params)
	require.ErrorContains(t, p.Notify(t.Context(), func() { t.Error("it wakes") }), "pooler")
	require.NotEmpty(t, p.sent.last("pg_backend_pid"), "what Notify sends is seen")
	require.Empty(t, p.sent.last("LISTEN"))

	dialect, err := pgdialect.New("", pgdialect.Arrays, sqlstore.Options{Schema: schema})
	require.NoError(t, err)
	for range 4 { // as many connections of the pooler, the last used first
		tx, err := p.pool.Begin(t.Context())
		require.NoError(t, err)
		defer tx.Rollback(t.Context()) //nolint:errcheck // it has written nothing
		var listens bool
		require.NoError(t, tx.QueryRow(t.Context(), "SELECT $1 IN (SELECT pg_listening_channels())", dialect.Channel).Scan(&listens))
		require.False(t, listens, "a connection that others get")
	}
}

// The pool may learn only when it connects as whom, and with which password: one that changes every hour.
func TestStore_NotifyConnectsAsThePoolDoes(t *testing.T) {
	t.Parallel()
	p := newProcess(t, pgtest.Schema(t, pgtest.V15), pgtest.V15.URL(), func(config *pgxpool.Config) {
		user, password := config.ConnConfig.User, config.ConnConfig.Password
		config.ConnConfig.User, config.ConnConfig.Password = "outbox_nobody", ""
		config.BeforeConnect = func(_ context.Context, c *pgx.ConnConfig) error {
			c.User, c.Password = user, password
			return nil
		}
	})
	awaitWake := p.listen(t)
	awaitWake() // for what was published before
	require.NoError(t, p.Save(t.Context(), nil, outbox.Message{Topic: "topic"}))
	awaitWake()
}
