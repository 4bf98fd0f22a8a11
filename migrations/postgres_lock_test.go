package migrations

import (
	"context"
	"database/sql"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/lib/pq"
	"github.com/lib/pq/pqerror"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/watermill-outbox/outbox/internal/pgtest"
	"github.com/watermill-outbox/outbox/internal/sqlname"
)

// overPostgres runs do with each driver, on an empty schema each.
func overPostgres(t *testing.T, do func(t *testing.T, driver, schema string, open func() *sql.DB)) {
	t.Helper()
	for driver, server := range map[string]pgtest.Server{"pgx": pgtest.V15, "postgres": pgtest.V18} {
		t.Run(driver, func(t *testing.T) {
			schema := pgtest.Schema(t, server)
			do(t, driver, schema, func() *sql.DB {
				db, err := sql.Open(driver, server.URL()+"?sslmode=disable")
				require.NoError(t, err)
				t.Cleanup(func() { assert.NoError(t, db.Close()) })
				return db
			})
		})
	}
}

// A migration that fills in data has no table that could exist already: only the version is in the loser's way.
func TestPostgres_Up_AppliesDataOnce_WhenManyRunAtOnce(t *testing.T) {
	overPostgres(t, func(t *testing.T, driver, schema string, open func() *sql.DB) {
		s := withSteps(t, nil, driver, WithSchema(schema))
		for range 5 {
			start := make(chan struct{})
			var group errgroup.Group
			for range 8 {
				m := migrator{schema: s, db: open(), patience: patience}
				group.Go(func() error {
					<-start
					return m.up(t.Context())
				})
			}
			close(start)
			require.NoError(t, group.Wait())

			m := migrator{schema: s, db: open(), patience: patience}
			var steps string
			require.NoError(t, m.db.QueryRowContext(t.Context(),
				s.names.Render("SELECT string_agg(n::text, ' ' ORDER BY n) FROM outbox_steps")).Scan(&steps))
			assert.Equal(t, "2 10", steps)
			require.NoError(t, m.down(t.Context()))
		}
	})
}

// Each locks the version table before it drops it, and nobody who waits holds what another one needs.
func TestPostgres_Down_ByManyAtOnce_IsNoDeadlock(t *testing.T) {
	overPostgres(t, func(t *testing.T, driver, schema string, open func() *sql.DB) {
		for range 3 {
			start := make(chan struct{})
			var group errgroup.Group
			for i := range 8 {
				m, err := newMigrator(open(), driver, []Option{WithSchema(schema)})
				require.NoError(t, err)
				m.dialect.lockTimeout = "SET LOCAL lock_timeout = '1min';\n" // longer than it takes to see a deadlock
				if i == 0 {
					require.NoError(t, m.createVersionTable(t.Context()))
				}
				group.Go(func() error {
					<-start
					if err := m.dropVersionTable(t.Context()); sqlState(err) != "42P01" { // undefined_table
						return err
					}
					return nil
				})
			}
			close(start)
			require.NoError(t, group.Wait())
		}
	})
}

// Invariant: the version table goes only in a transaction that has locked it and seen, after that, no migration in it.
func TestPostgres_Down_LeavesWhatAnotherHasMigratedUpMeanwhile(t *testing.T) {
	overPostgres(t, func(t *testing.T, driver, schema string, open func() *sql.DB) {
		m, err := newMigrator(open(), driver, []Option{WithSchema(schema)})
		require.NoError(t, err)
		require.NoError(t, m.createVersionTable(t.Context()))
		other, err := open().BeginTx(t.Context(), nil)
		require.NoError(t, err)
		_, err = other.ExecContext(t.Context(), m.names.Render("INSERT INTO outbox_version VALUES (7, 1, true)"))
		require.NoError(t, err)

		var group errgroup.Group
		group.Go(func() error { return m.dropVersionTable(t.Context()) })
		for waiting := 0; waiting == 0; {
			require.NoError(t, other.QueryRowContext(t.Context(), m.names.Render(
				"SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = $$outbox_version$$::regclass")).Scan(&waiting))
		}
		require.NoError(t, other.Commit())
		require.NoError(t, group.Wait())
		version, err := m.version(t.Context())
		require.NoError(t, err)
		assert.EqualValues(t, 1, version)
	})
}

type call func(m migrator, ctx context.Context) error

// What others may hold while there is something to migrate, and the version that is there for that long.
var postgresLocks = map[string]struct {
	prepared call
	version  int64
	held     string
	call     call
}{
	"up, while another creates the version table": {
		version: noVersionTable, held: "CREATE TABLE outbox_version ()", call: migrator.up,
	},
	"up, while another creates the tables": {
		prepared: migrator.createVersionTable, held: "CREATE TABLE outbox_messages ()", call: migrator.up,
	},
	"up, while another writes the version": {
		prepared: migrator.createVersionTable, held: "LOCK TABLE outbox_version IN SHARE MODE", call: migrator.up,
	},
	"up, while another drops the version table": {
		prepared: migrator.createVersionTable, held: "LOCK TABLE outbox_version", call: migrator.up,
	},
	"down, while a message is being published": {
		prepared: migrator.up, version: 1, held: "INSERT INTO outbox_messages (topic) VALUES ('orders')", call: migrator.down,
	},
	"down, while another writes the version": {
		prepared: migrator.createVersionTable, held: "LOCK TABLE outbox_version IN SHARE MODE", call: migrator.down,
	},
	"down, while another drops the version table": {
		prepared: migrator.up, version: 1, held: "LOCK TABLE outbox_version", call: migrator.down,
	},
}

// overLocks runs do for each of them, with a migrator that waits on the server for a few milliseconds at a time. ctx is
// for when it waits for ever.
func overLocks(t *testing.T, do func(ctx context.Context, t *testing.T, m migrator, held *sql.Tx, version int64, call call)) {
	t.Helper()
	for name, lock := range postgresLocks {
		t.Run(name, func(t *testing.T) {
			overPostgres(t, func(t *testing.T, driver, schema string, open func() *sql.DB) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				m, err := newMigrator(open(), driver, []Option{WithSchema(schema)})
				require.NoError(t, err)
				if lock.prepared != nil {
					require.NoError(t, lock.prepared(m, ctx))
				}
				held, err := open().BeginTx(ctx, nil)
				require.NoError(t, err)
				defer func() { _ = held.Rollback() }()
				_, err = held.ExecContext(ctx, m.names.Render(lock.held))
				require.NoError(t, err)
				m.dialect.lockTimeout = "SET LOCAL lock_timeout = '5ms';\n"
				do(ctx, t, m, held, lock.version, lock.call)
			})
		})
	}
}

func TestPostgres_WaitsForLocks(t *testing.T) {
	overLocks(t, func(ctx context.Context, t *testing.T, m migrator, held *sql.Tx, _ int64, call call) {
		look, n := m.dialect.tableExists, 0
		m.dialect.tableExists = func(names sqlname.Names, table string) (string, []any) {
			if n++; n == 6 {
				require.NoError(t, held.Rollback())
			}
			return look(names, table)
		}
		require.NoError(t, call(m, ctx))
		assert.GreaterOrEqual(t, n, 6)
	})
}

func TestPostgres_GivesUpOnALock_SayingWhatToDo_AndLeavesAllAsItWas(t *testing.T) {
	overLocks(t, func(ctx context.Context, t *testing.T, m migrator, held *sql.Tx, version int64, call call) {
		m.patience = 20 * time.Millisecond
		err := m.dialect.advise(call(m, ctx))
		require.ErrorContains(t, err, "stop what uses the tables")
		assert.Equal(t, lockNotAvailable, sqlState(err))

		_, err = held.ExecContext(ctx, "SELECT 1")
		require.NoError(t, err, "the other transaction lives")
		require.NoError(t, held.Rollback())
		m.dialect.lockTimeout = postgres.lockTimeout
		got, err := m.version(ctx)
		require.NoError(t, err)
		assert.Equal(t, version, got)
	})
}

// Whether the step has lost to another process can only be seen when that one has let the version table go.
func TestPostgres_TriesAgain_WhenTheVersionIsLockedAfterAFailure(t *testing.T) {
	overPostgres(t, func(t *testing.T, driver, schema string, open func() *sql.DB) {
		m, err := newMigrator(open(), driver, []Option{WithSchema(schema)})
		require.NoError(t, err)
		require.NoError(t, m.up(t.Context()))
		m.dialect.lockTimeout = "SET LOCAL lock_timeout = '5ms';\n"
		held, err := open().BeginTx(t.Context(), nil)
		require.NoError(t, err)
		defer func() { _ = held.Rollback() }()
		err = m.attempt(t.Context(), func(int64) error {
			_, err := held.ExecContext(t.Context(), m.names.Render("LOCK TABLE outbox_version"))
			require.NoError(t, err)
			return &pq.Error{Code: pqerror.DuplicateTable}
		})
		require.Error(t, err)
		assert.True(t, m.dialect.isBusy(err))
	})
}

func TestPostgres_Version_DoesNotWaitForEver(t *testing.T) {
	overPostgres(t, func(t *testing.T, driver, schema string, open func() *sql.DB) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		require.NoError(t, Up(ctx, open(), driver, WithSchema(schema)))
		held, err := open().BeginTx(ctx, nil)
		require.NoError(t, err)
		defer func() { _ = held.Rollback() }()
		_, err = held.ExecContext(ctx, "LOCK TABLE "+schema+".outbox_version")
		require.NoError(t, err)
		_, err = Version(ctx, open(), driver, WithSchema(schema))
		require.ErrorContains(t, err, "stop what uses the tables")
	})
}

func TestPostgres_StopsWaiting_WhenItsContextEnds(t *testing.T) {
	overLocks(t, func(ctx context.Context, t *testing.T, m migrator, _ *sql.Tx, _ int64, call call) {
		ctx, cancel := context.WithCancelCause(ctx)
		reason := fmt.Errorf("enough of %s", t.Name())
		look, n := m.dialect.tableExists, 0
		m.dialect.tableExists = func(names sqlname.Names, table string) (string, []any) {
			if n++; n == 6 {
				cancel(reason)
			}
			return look(names, table)
		}
		require.ErrorIs(t, call(m, ctx), reason)
	})
}

func TestPostgres_KnowsErrorsByTheirState_WhicheverTheDriver(t *testing.T) {
	for state, want := range map[string]struct {
		busy   bool
		advice string
	}{
		"55P03": {true, "stop what uses the tables"},
		"40P01": {true, ""},
		"40001": {true, ""},
		"3F000": {false, "create the schema first"},
		"42501": {false, "GRANT USAGE, CREATE ON SCHEMA"},
		"25006": {false, "connect to the primary server"},
		"42P05": {false, "default_query_exec_mode=exec (pgx)"},
		"26000": {false, "binary_parameters=yes (lib/pq)"},
		"42P07": {false, ""},
	} {
		for _, err := range []error{&pgconn.PgError{Code: state}, &pq.Error{Code: pqerror.Code(state)}} {
			err = fmt.Errorf("while migrating: %w", err)
			assert.Equal(t, want.busy, postgres.isBusy(err), state)
			require.ErrorIs(t, postgres.advise(err), err)
			if want.advice == "" {
				assert.Equal(t, err, postgres.advise(err))
			} else {
				require.ErrorContains(t, postgres.advise(err), want.advice)
			}
		}
	}
	assert.False(t, postgres.isBusy(sql.ErrConnDone))
	assert.Equal(t, sql.ErrConnDone, postgres.advise(sql.ErrConnDone))
}
