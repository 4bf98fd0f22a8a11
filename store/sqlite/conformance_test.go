package sqlite_test

import (
	"context"
	"database/sql"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/store/memory"
	"github.com/watermill-outbox/outbox/store/sqlite"
	"github.com/watermill-outbox/outbox/storetest"
)

func TestStore_KeepsTheContractOfStores(t *testing.T) {
	storetest.Run(t, newHarness, storetest.Features{
		Slots: 1, OneWriter: true, Savepoints: true,
		Transactor: true, Notifier: true, TopicPauser: true, Leader: true, TermReporter: true, Inspector: true, StatsReporter: true,
	})
}

const testTTL = time.Second

func newHarness(t *testing.T) storetest.Harness {
	t.Helper()
	path := filepath.Join(t.TempDir(), "outbox.db?_synchronous=NORMAL")
	db := open(t, path)
	require.NoError(t, newStore(t, db).Migrate(t.Context()))
	_, err := db.Exec("CREATE TABLE business (value TEXT NOT NULL)")
	require.NoError(t, err)
	conn, err := db.Conn(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close()) })
	other, err := memory.New()
	require.NoError(t, err)
	return storetest.Harness{
		Open: func(t *testing.T) outbox.Store {
			t.Helper()
			return newStore(t, db, sqlite.WithLeaseTTL(testTTL))
		},
		Begin: func(t *testing.T, _ outbox.Store) storetest.Tx {
			t.Helper()
			tx, err := db.Begin()
			require.NoError(t, err)
			t.Cleanup(func() { _ = tx.Rollback() })
			return sqlTx{tx}
		},
		Write: func(ctx context.Context, tx any, value string) error {
			_, err := tx.(*sql.Tx).ExecContext(ctx, "INSERT INTO business (value) VALUES (?)", value)
			return err
		},
		Written: func(ctx context.Context) ([]string, error) {
			return column[string](ctx, db, "SELECT value FROM business")
		},
		ForeignTxs: map[string]any{
			"a *sql.DB":               db,
			"a *sql.Conn":             conn,
			"a nil *sql.Tx":           (*sql.Tx)(nil),
			"a transaction of memory": other.Begin(),
		},
		Processed: func(s outbox.Store) outbox.ProcessedStore { return s.(*sqlite.Store).Processed() },
		DB:        db,
		LeaseTTL:  testTTL,
		Expire: func(t *testing.T, _ outbox.Store) {
			t.Helper() // another owner that has gone: s cannot renew what it no longer owns
			_, err := db.Exec("UPDATE outbox_slots SET owner = 'somebody who has gone', expires_at = 0")
			require.NoError(t, err)
		},
		Damage: func(t *testing.T, uuid string) {
			t.Helper()
			_, err := db.Exec("UPDATE outbox_messages SET headers = '{' WHERE uuid = ?", uuid)
			require.NoError(t, err)
		},
		ProcessedAt: func(t *testing.T, uuid string) time.Time {
			t.Helper()
			return at(t, db, "SELECT processed_at FROM outbox_archive WHERE uuid = ?", uuid)
		},
		MarkedAt: func(t *testing.T, group, msgID string) time.Time {
			t.Helper()
			return at(t, db, "SELECT processed_at FROM outbox_processed WHERE consumer_group = ? AND message_id = ?", group, msgID)
		},
	}
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
	ms, err := column[int64](t.Context(), db, query, args...)
	require.NoError(t, err)
	require.Len(t, ms, 1)
	return time.UnixMilli(ms[0])
}
