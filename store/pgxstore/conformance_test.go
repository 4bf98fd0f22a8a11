package pgxstore_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/internal/pgtest"
	"github.com/watermill-outbox/outbox/store/memory"
	"github.com/watermill-outbox/outbox/store/pgxstore"
	"github.com/watermill-outbox/outbox/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// way is how to go to a server.
type way struct {
	server pgtest.Server
	params string
}

var ways = map[string]way{
	"15":        {pgtest.V15, ""},
	"18":        {pgtest.V18, ""},
	"18/simple": {pgtest.V18, "?default_query_exec_mode=simple_protocol"},
	"pgbouncer": {pgtest.PgBouncer, "?default_query_exec_mode=exec"},
}

func (w way) open(t testing.TB) *pgxpool.Pool {
	t.Helper()
	config, err := pgxpool.ParseConfig(w.server.URL() + w.params)
	require.NoError(t, err)
	config.MaxConns = 20
	pool, err := pgxpool.NewWithConfig(context.Background(), config)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return pool
}

func TestStore_KeepsTheContractOfStores(t *testing.T) {
	for name, w := range ways {
		if testing.Short() && name != "15" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			storetest.Run(t, func(t *testing.T) storetest.Harness { return newHarness(t, w) }, storetest.Features{
				Slots: 64, Savepoints: true, Deaf: w.server == pgtest.PgBouncer,
				Transactor: true, Notifier: true, TopicPauser: true, Leader: true, TermReporter: true, Inspector: true, StatsReporter: true,
			})
		})
	}
}

const testTTL = time.Second

func newHarness(t *testing.T, w way) storetest.Harness {
	t.Helper()
	schema := pgtest.Schema(t, w.server)
	db := w.open(t)
	open := func(t *testing.T) *pgxstore.Store {
		t.Helper()
		s, err := pgxstore.New(db, pgxstore.WithSchema(schema), pgxstore.WithLeaseTTL(testTTL))
		require.NoError(t, err)
		return s
	}
	require.NoError(t, open(t).Migrate(t.Context()))
	_, err := db.Exec(t.Context(), "CREATE TABLE "+schema+".business (value text NOT NULL)")
	require.NoError(t, err)
	other, err := memory.New()
	require.NoError(t, err)
	return storetest.Harness{
		Open: func(t *testing.T) outbox.Store { t.Helper(); return open(t) },
		Begin: func(t *testing.T, _ outbox.Store) storetest.Tx {
			t.Helper()
			tx, err := db.Begin(context.Background())
			require.NoError(t, err)
			t.Cleanup(func() { _ = tx.Rollback(context.Background()) })
			return userTx{tx}
		},
		Write: func(ctx context.Context, tx any, value string) error {
			_, err := tx.(pgx.Tx).Exec(ctx, "INSERT INTO "+schema+".business (value) VALUES ($1)", value)
			return err
		},
		Written: func(ctx context.Context) ([]string, error) {
			return column[string](ctx, db, "SELECT value FROM "+schema+".business")
		},
		ForeignTxs: map[string]any{
			"a *pgxpool.Pool":         db,
			"a nil *pgxpool.Tx":       (*pgxpool.Tx)(nil),
			"a transaction of memory": other.Begin(),
		},
		Processed: func(s outbox.Store) outbox.ProcessedStore { return s.(*pgxstore.Store).Processed() },
		DB:        db,
		LeaseTTL:  testTTL,
		Expire:    func(t *testing.T, _ outbox.Store) { t.Helper(); expire(t, w.server, schema) },
		Damage: func(t *testing.T, uuid string) {
			t.Helper()
			pgtest.Exec(t, w.server, "UPDATE "+schema+".outbox_messages SET headers = '[]' WHERE uuid = $1", uuid)
		},
		ProcessedAt: func(t *testing.T, uuid string) time.Time {
			t.Helper()
			return at(t, db, "SELECT processed_at FROM "+schema+".outbox_archive WHERE uuid = $1", uuid)
		},
		MarkedAt: func(t *testing.T, group, msgID string) time.Time {
			t.Helper()
			return at(t, db, "SELECT processed_at FROM "+schema+".outbox_processed WHERE consumer_group = $1 AND message_id = $2",
				group, msgID)
		},
	}
}

// expire gives all slots to others that have gone: who had them cannot renew them.
func expire(t *testing.T, s pgtest.Server, schema string) {
	t.Helper()
	pgtest.Exec(t, s, fmt.Sprintf(`
		UPDATE %[1]s.outbox_slots SET owner = 'somebody who has gone', expires_at = '-infinity'`, schema))
	pgtest.Exec(t, s, fmt.Sprintf("UPDATE %s.outbox_relays SET expires_at = '-infinity'", schema))
}

type userTx struct{ pgx.Tx }

func (t userTx) Handle() any     { return t.Tx }
func (t userTx) Commit() error   { return t.Tx.Commit(context.Background()) }
func (t userTx) Rollback() error { return t.Tx.Rollback(context.Background()) }

func (t userTx) Savepoint(ctx context.Context, name string) error {
	_, err := t.Exec(ctx, "SAVEPOINT "+name)
	return err
}

func (t userTx) RollbackTo(ctx context.Context, name string) error {
	_, err := t.Exec(ctx, "ROLLBACK TO SAVEPOINT "+name)
	return err
}

func column[T any](ctx context.Context, db *pgxpool.Pool, query string, args ...any) ([]T, error) {
	rows, err := db.Query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[T])
}

func at(t *testing.T, db *pgxpool.Pool, query string, args ...any) time.Time {
	t.Helper()
	times, err := column[time.Time](t.Context(), db, query, args...)
	require.NoError(t, err)
	require.Len(t, times, 1)
	return times[0]
}
