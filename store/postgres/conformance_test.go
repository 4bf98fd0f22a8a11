package postgres_test

import (
	"context"
	"database/sql"
	"fmt"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"
	_ "github.com/lib/pq"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/internal/pgtest"
	"github.com/watermill-outbox/outbox/store/memory"
	"github.com/watermill-outbox/outbox/store/postgres"
	"github.com/watermill-outbox/outbox/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// way is a driver and how it goes to a server.
type way struct {
	server pgtest.Server
	driver string
	params string
}

var ways = map[string]way{
	"15/pgx":        {pgtest.V15, "pgx", ""},
	"15/pq":         {pgtest.V15, "postgres", "?sslmode=disable"},
	"18/pgx":        {pgtest.V18, "pgx", ""},
	"18/pq":         {pgtest.V18, "postgres", "?sslmode=disable"},
	"pgbouncer/pgx": {pgtest.PgBouncer, "pgx", "?default_query_exec_mode=exec"},
	"pgbouncer/pq":  {pgtest.PgBouncer, "postgres", "?sslmode=disable&binary_parameters=yes"},
}

func (w way) open(t testing.TB) *sql.DB {
	t.Helper()
	db, err := sql.Open(w.driver, w.server.URL()+w.params)
	require.NoError(t, err)
	db.SetMaxOpenConns(20)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	return db
}

func TestStore_KeepsTheContractOfStores(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes half a minute, as that of pgxstore, which runs")
	}
	for name, w := range ways {
		t.Run(name, func(t *testing.T) {
			storetest.Run(t, func(t *testing.T) storetest.Harness { return newHarness(t, w) }, storetest.Features{
				Slots: 64, Savepoints: true,
				Transactor: true, TopicPauser: true, Leader: true, TermReporter: true, Inspector: true, StatsReporter: true,
			})
		})
	}
}

const testTTL = time.Second

func newHarness(t *testing.T, w way) storetest.Harness {
	t.Helper()
	schema := pgtest.Schema(t, w.server)
	db := w.open(t)
	open := func(t *testing.T) *postgres.Store {
		t.Helper()
		s, err := postgres.New(db, postgres.WithSchema(schema), postgres.WithLeaseTTL(testTTL))
		require.NoError(t, err)
		return s
	}
	require.NoError(t, open(t).Migrate(t.Context()))
	_, err := db.Exec("CREATE TABLE " + schema + ".business (value text NOT NULL)")
	require.NoError(t, err)
	other, err := memory.New()
	require.NoError(t, err)
	return storetest.Harness{
		Open: func(t *testing.T) outbox.Store { t.Helper(); return open(t) },
		Begin: func(t *testing.T, _ outbox.Store) storetest.Tx {
			t.Helper()
			tx, err := db.Begin()
			require.NoError(t, err)
			t.Cleanup(func() { _ = tx.Rollback() })
			return sqlTx{tx}
		},
		Write: func(ctx context.Context, tx any, value string) error {
			_, err := tx.(*sql.Tx).ExecContext(ctx, "INSERT INTO "+schema+".business (value) VALUES ($1)", value)
			return err
		},
		Written: func(ctx context.Context) ([]string, error) {
			return column[string](ctx, db, "SELECT value FROM "+schema+".business")
		},
		ForeignTxs: map[string]any{
			"a *sql.DB":               db,
			"a nil *sql.Tx":           (*sql.Tx)(nil),
			"a transaction of memory": other.Begin(),
		},
		Processed: func(s outbox.Store) outbox.ProcessedStore { return s.(*postgres.Store).Processed() },
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

type sqlTx struct{ *sql.Tx }

func (t sqlTx) Handle() any { return t.Tx }

func (t sqlTx) Savepoint(ctx context.Context, name string) error {
	_, err := t.ExecContext(ctx, "SAVEPOINT "+name)
	return err
}

func (t sqlTx) RollbackTo(ctx context.Context, name string) error {
	_, err := t.ExecContext(ctx, "ROLLBACK TO SAVEPOINT "+name)
	return err
}

func column[T any](ctx context.Context, db *sql.DB, query string, args ...any) (values []T, err error) {
	rows, err := db.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells more
	for rows.Next() {
		var v T
		if err := rows.Scan(&v); err != nil {
			return nil, err
		}
		values = append(values, v)
	}
	return values, rows.Err()
}

func at(t *testing.T, db *sql.DB, query string, args ...any) time.Time {
	t.Helper()
	times, err := column[time.Time](t.Context(), db, query, args...)
	require.NoError(t, err)
	require.Len(t, times, 1)
	return times[0]
}
