package migrations_test

import (
	"context"
	"database/sql"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox/internal/pgtest"
	"github.com/watermill-outbox/outbox/migrations"
)

var racers = []way{{pgtest.V15, "pgx", ""}, {pgtest.V18, "postgres", pq}, {pgtest.PgBouncer, "pgx", oneShot}}

const postgresRounds = 3

func (w way) assertMigratedOnce(t *testing.T, db *sql.DB, schema string) {
	t.Helper()
	assert.ElementsMatch(t, postgresTables, tablesOf(t, w.server, schema))
	assert.EqualValues(t, latest, w.version(t, db, migrations.WithSchema(schema)))
	assert.Equal(t, latest+1, value[int](t, db, "SELECT count(*) FROM "+schema+".outbox_version"))
	assert.Equal(t, 64, value[int](t, db, "SELECT count(*) FROM "+schema+".outbox_slots"))
}

func TestPostgres_UpThenDown_ByManyAtOnce_SucceedForAll(t *testing.T) {
	overPostgres(t, racers, func(t *testing.T, w way, schema string) {
		db := w.open(t)
		for range postgresRounds {
			open := func() *sql.DB { return w.open(t) }
			require.NoError(t, atOnce(t, open, func(ctx context.Context, db *sql.DB, _ int) error {
				return migrations.Up(ctx, db, w.driver, migrations.WithSchema(schema))
			}))
			w.assertMigratedOnce(t, db, schema)
			require.NoError(t, atOnce(t, open, func(ctx context.Context, db *sql.DB, _ int) error {
				return migrations.Down(ctx, db, w.driver, migrations.WithSchema(schema))
			}))
			assert.Empty(t, tablesOf(t, w.server, schema))
		}
	})
}

// Some of the calls may fail, but all tables are there or none is, and Up goes on from it.
func TestPostgres_UpAndDown_AtOnce_LeaveAllOrNothing(t *testing.T) {
	overPostgres(t, racers[:2], func(t *testing.T, w way, schema string) {
		in, db := migrations.WithSchema(schema), w.open(t)
		for range postgresRounds {
			_ = atOnce(t, func() *sql.DB { return w.open(t) }, func(ctx context.Context, db *sql.DB, i int) error {
				for turn := range 2 {
					if (i+turn)%2 == 0 {
						_ = migrations.Up(ctx, db, w.driver, in)
					} else {
						_ = migrations.Down(ctx, db, w.driver, in)
					}
				}
				return nil
			})
			if w.version(t, db, in) == latest {
				w.assertMigratedOnce(t, db, schema)
			} else {
				assert.Subset(t, []string{"outbox_version"}, tablesOf(t, w.server, schema))
			}
			w.up(t, db, in)
			w.assertMigratedOnce(t, db, schema)
		}
	})
}

func TestPostgres_Up_OfACurrentSchema_OnlyReads(t *testing.T) {
	overPostgres(t, ways[:2], func(t *testing.T, w way, schema string) {
		w.up(t, w.open(t), migrations.WithSchema(schema))
		w.up(t, w.open(t, "default_transaction_read_only=on"), migrations.WithSchema(schema))
	})
}

func TestPostgres_WorksOnASingleConnection_WithSerializableTransactions(t *testing.T) {
	overPostgres(t, ways[:2], func(t *testing.T, w way, schema string) {
		db := w.open(t, "default_transaction_isolation=serializable")
		db.SetMaxOpenConns(1)
		w.up(t, db, migrations.WithSchema(schema))
		assert.EqualValues(t, latest, w.version(t, db, migrations.WithSchema(schema)))
		w.down(t, db, migrations.WithSchema(schema))
		assert.Empty(t, tablesOf(t, w.server, schema))
	})
}

// Behind PgBouncer a setting that is not the transaction's own would be left to others.
func TestPostgres_LeavesNothingBehindInTheSession(t *testing.T) {
	overPostgres(t, ways[:2], func(t *testing.T, w way, schema string) {
		db := w.open(t)
		db.SetMaxOpenConns(1)
		settings := "SELECT string_agg(name || '=' || setting, ' ' ORDER BY name) FROM pg_settings WHERE source = 'session'"
		before := value[sql.NullString](t, db, settings)
		w.up(t, db, migrations.WithSchema(schema))
		w.down(t, db, migrations.WithSchema(schema))
		assert.Equal(t, before, value[sql.NullString](t, db, settings))
		assert.Zero(t, value[int](t, db, "SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory'"))
	})
}

func TestPostgres_LeavesTheSchemaOfANewerReleaseAlone(t *testing.T) {
	overPostgres(t, ways[:2], func(t *testing.T, w way, schema string) {
		in, db := migrations.WithSchema(schema), w.open(t)
		w.up(t, db, in)
		exec(t, db, "INSERT INTO "+schema+".outbox_version (version_id, is_applied) VALUES (1000, true)")
		before := catalog(t, w.server, schema, "")
		w.up(t, db, in)
		assert.EqualValues(t, 1000, w.version(t, db, in))
		require.ErrorContains(t, migrations.Down(t.Context(), db, w.driver, in),
			"the schema is at version 1000 and this release knows versions up to 1")
		assert.Equal(t, before, catalog(t, w.server, schema, ""))
	})
}

func TestPostgres_LeavesTheTablesOfAnotherToolAlone_AndSaysWhatToDo(t *testing.T) {
	overPostgres(t, ways[:2], func(t *testing.T, w way, schema string) {
		in, db := migrations.WithSchema(schema), w.open(t)
		statements, err := migrations.SQL(w.driver, 0, latest, in)
		require.NoError(t, err)
		exec(t, db, statements)
		before := catalog(t, w.server, schema, "")
		w.down(t, db, in)
		assert.Equal(t, before, catalog(t, w.server, schema, ""))

		err = migrations.Up(t.Context(), db, w.driver, in)
		require.ErrorContains(t, err, `"`+schema+`"."outbox_messages" was not created by migrations.Up`)
		require.ErrorContains(t, err, "WithPrefix")
		assert.Zero(t, w.version(t, db, in))
		assert.Subset(t, catalog(t, w.server, schema, ""), before)
	})
}

func TestPostgres_AppliesNothing_WhenItFailsMidway(t *testing.T) {
	overPostgres(t, ways[:2], func(t *testing.T, w way, schema string) {
		in, db := migrations.WithSchema(schema), w.open(t)
		exec(t, db, "CREATE TABLE "+schema+".outbox_processed (of_the_user text)")
		require.Error(t, migrations.Up(t.Context(), db, w.driver, in))
		assert.ElementsMatch(t, []string{"outbox_processed", "outbox_version"}, tablesOf(t, w.server, schema))
		exec(t, db, "DROP TABLE "+schema+".outbox_processed")
		w.up(t, db, in)

		// The first table to go is another one.
		exec(t, db, "CREATE VIEW "+schema+".of_the_user AS SELECT id FROM "+schema+".outbox_messages")
		before := catalog(t, w.server, schema, "")
		require.ErrorContains(t, migrations.Down(t.Context(), db, w.driver, in), "other objects depend on it")
		assert.Equal(t, before, catalog(t, w.server, schema, ""))
		exec(t, db, "DROP VIEW "+schema+".of_the_user")
		w.down(t, db, in)
		assert.Empty(t, tablesOf(t, w.server, schema))
	})
}

func TestPostgres_SaysWhatToDo_WhenTheSchemaDoesNotExist(t *testing.T) {
	overPostgres(t, ways[:2], func(t *testing.T, w way, schema string) {
		in, db := migrations.WithSchema("no_"+schema), w.open(t)
		err := migrations.Up(t.Context(), db, w.driver, in)
		require.ErrorContains(t, err, `schema "no_`+schema+`" does not exist`)
		require.ErrorContains(t, err, "create the schema first, or name one that exists with migrations.WithSchema")
		assert.Zero(t, w.version(t, db, in))
		w.down(t, db, in)
	})
}

func TestPostgres_SaysWhatToDo_WhenItMayNot(t *testing.T) {
	overPostgres(t, ways[:2], func(t *testing.T, w way, schema string) {
		in, role := migrations.WithSchema(schema), "role_"+schema
		pgtest.Exec(t, w.server, "CREATE ROLE "+role+" LOGIN")
		t.Cleanup(func() { pgtest.Exec(t, w.server, "DROP ROLE "+role) })
		db := w.open(t, "user="+role)
		assertRefused := func(err error, what string) {
			t.Helper()
			require.ErrorContains(t, err, "permission denied for "+what)
			require.ErrorContains(t, err, "GRANT USAGE, CREATE ON SCHEMA to the role of this connection")
			require.ErrorContains(t, err, "WithSchema")
		}
		assertRefused(migrations.Up(t.Context(), db, w.driver, in), "schema "+schema)
		pgtest.Exec(t, w.server, "GRANT USAGE ON SCHEMA "+schema+" TO "+role)
		t.Cleanup(func() { pgtest.Exec(t, w.server, "DROP OWNED BY "+role) })
		assertRefused(migrations.Up(t.Context(), db, w.driver, in), "schema "+schema)

		// The tables are another role's.
		w.up(t, w.open(t), in)
		_, err := migrations.Version(t.Context(), db, w.driver, in)
		assertRefused(err, "table outbox_version")
		assertRefused(migrations.Up(t.Context(), db, w.driver, in), "table outbox_version")
		pgtest.Exec(t, w.server, "GRANT SELECT ON "+schema+".outbox_version TO "+role)
		w.up(t, db, in)
		require.ErrorContains(t, migrations.Down(t.Context(), db, w.driver, in), "as the role that owns the tables")
		w.assertMigratedOnce(t, w.open(t), schema)
	})
}

func TestPostgres_SaysWhatToDo_WhenTheServerIsReadOnly(t *testing.T) {
	overPostgres(t, ways[:2], func(t *testing.T, w way, schema string) {
		err := migrations.Up(t.Context(), w.open(t, "default_transaction_read_only=on"), w.driver, migrations.WithSchema(schema))
		require.ErrorContains(t, err, "read-only transaction")
		require.ErrorContains(t, err, "connect to the primary server")
	})
}

func TestPostgres_StopsWhenItsContextHasEnded(t *testing.T) {
	overPostgres(t, ways[:2], func(t *testing.T, w way, schema string) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		for call, err := range everyCall(ctx, w.open(t), w.driver, migrations.WithSchema(schema)) {
			if call != "SQL" {
				require.ErrorIs(t, err, context.Canceled, call)
			}
		}
		assert.Empty(t, tablesOf(t, w.server, schema))
	})
}
