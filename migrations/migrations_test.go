package migrations_test

import (
	"context"
	"database/sql"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox/migrations"
)

const (
	driver = "sqlite3"
	// latest is the version that this release leads to.
	latest = 1
)

// The ways to open SQLite that users are told of, and the one they have if they were not.
var dsnOptions = map[string]string{
	"immediate transactions and WAL": "_txlock=immediate&_busy_timeout=5000&_journal_mode=WAL",
	"plain":                          "_busy_timeout=5000",
}

func newDSN(t *testing.T, options string) string {
	t.Helper()
	return "file:" + filepath.Join(t.TempDir(), "outbox.db") + "?" + options
}

func open(t *testing.T, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open(driver, dsn)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, db.Close()) })
	return db
}

func newDB(t *testing.T) *sql.DB {
	t.Helper()
	return open(t, newDSN(t, dsnOptions["plain"]))
}

func up(t *testing.T, db *sql.DB, opts ...migrations.Option) {
	t.Helper()
	require.NoError(t, migrations.Up(t.Context(), db, driver, opts...))
}

func down(t *testing.T, db *sql.DB, opts ...migrations.Option) {
	t.Helper()
	require.NoError(t, migrations.Down(t.Context(), db, driver, opts...))
}

func version(t *testing.T, db *sql.DB, opts ...migrations.Option) int64 {
	t.Helper()
	v, err := migrations.Version(t.Context(), db, driver, opts...)
	require.NoError(t, err)
	return v
}

func exec(t *testing.T, db *sql.DB, query string) {
	t.Helper()
	_, err := db.ExecContext(t.Context(), query)
	require.NoError(t, err, query)
}

func value[T any](t *testing.T, db *sql.DB, query string) T {
	t.Helper()
	var v T
	require.NoError(t, db.QueryRowContext(t.Context(), query).Scan(&v), query)
	return v
}

// schemaOf returns the definitions of all tables and indexes by name, without what SQLite makes for itself.
func schemaOf(t *testing.T, db *sql.DB) map[string]string {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), "SELECT name, sql FROM sqlite_master WHERE name NOT GLOB 'sqlite_*'")
	require.NoError(t, err)
	defer func() { require.NoError(t, rows.Close()) }()
	schema := map[string]string{}
	for rows.Next() {
		var name, definition string
		require.NoError(t, rows.Scan(&name, &definition))
		schema[name] = definition
	}
	require.NoError(t, rows.Err())
	return schema
}

func namesOf(t *testing.T, db *sql.DB) []string {
	t.Helper()
	var names []string
	for name := range schemaOf(t, db) {
		names = append(names, name)
	}
	return names
}

var tablesAndIndexes = []string{
	"outbox_messages", "outbox_messages_due_idx",
	"outbox_archive", "outbox_archive_processed_idx", "outbox_archive_failed_idx",
	"outbox_slots",
	"outbox_processed", "outbox_processed_at_idx",
	"outbox_version",
}

func TestUp_CreatesEveryTableAndIndex(t *testing.T) {
	for _, name := range []string{"sqlite3", "sqlite"} {
		db := newDB(t)
		require.NoError(t, migrations.Up(t.Context(), db, name))
		assert.ElementsMatch(t, tablesAndIndexes, namesOf(t, db))
		assert.EqualValues(t, latest, version(t, db))
		assert.Equal(t, 1, value[int](t, db, "SELECT count(*) FROM outbox_slots WHERE slot = 0 AND owner = ''"))
	}
}

func TestUp_LetsAnyLanguageInsert_WithTopicAndPayloadOnly(t *testing.T) {
	db := newDB(t)
	up(t, db)
	began := time.Now()
	exec(t, db, "INSERT INTO outbox_messages (topic, payload) VALUES ('orders', 'one'), ('orders', 'two')")
	ended := time.Now()

	for id := range []int{1, 2} {
		var (
			uuid, key, headers, lastError string
			retries, createdAt            int64
			availableAt                   sql.NullInt64
		)
		require.NoError(t, db.QueryRowContext(t.Context(), `SELECT uuid, key, headers, retries, available_at, last_error,
			created_at FROM outbox_messages WHERE id = ?`, id+1).
			Scan(&uuid, &key, &headers, &retries, &availableAt, &lastError, &createdAt))
		assert.Regexp(t, "^[0-9a-f]{32}$", uuid)
		assert.Empty(t, key)
		assert.Equal(t, "{}", headers)
		assert.Zero(t, retries)
		assert.False(t, availableAt.Valid)
		assert.Empty(t, lastError)
		// SQLite's clock has whole milliseconds, and julianday a little less.
		assert.WithinRange(t, time.UnixMilli(createdAt), began.Add(-2*time.Millisecond), ended)
	}
	assert.Equal(t, 2, value[int](t, db, "SELECT count(DISTINCT uuid) FROM outbox_messages"))
}

func TestUp_NeverLetsAnIDBeGivenTwice(t *testing.T) {
	db := newDB(t)
	up(t, db)
	exec(t, db, "INSERT INTO outbox_messages (topic, payload) VALUES ('orders', 'one'), ('orders', 'two')")
	exec(t, db, "DELETE FROM outbox_messages")
	exec(t, db, "INSERT INTO outbox_messages (topic, payload) VALUES ('orders', 'three')")
	assert.Equal(t, 3, value[int](t, db, "SELECT id FROM outbox_messages"))
}

func TestUp_LetsTheArchiveHoldProcessedAndFailedOnly(t *testing.T) {
	db := newDB(t)
	up(t, db)
	for status, ok := range map[string]bool{"processed": true, "failed": true, "pending": false, "": false} {
		_, err := db.ExecContext(t.Context(), `INSERT INTO outbox_archive (id, uuid, topic, key, payload, headers, retries,
			last_error, created_at, status, processed_at) VALUES (abs(random()), 'u', 't', '', x'', '{}', 0, '', 1, ?, 2)`, status)
		assert.Equal(t, ok, err == nil, "status %q: %v", status, err)
	}
}

func TestUp_RemembersAMessageOncePerConsumerGroup(t *testing.T) {
	db := newDB(t)
	up(t, db)
	exec(t, db, "INSERT INTO outbox_processed (consumer_group, message_id) VALUES ('a', 'm'), ('b', 'm')")
	_, err := db.ExecContext(t.Context(), "INSERT INTO outbox_processed (consumer_group, message_id) VALUES ('a', 'm')")
	require.ErrorContains(t, err, "UNIQUE")
	processedAt := value[int64](t, db, "SELECT max(processed_at) FROM outbox_processed")
	assert.WithinDuration(t, time.Now(), time.UnixMilli(processedAt), time.Minute)
}

// The plans that queries rely on.
func TestUp_CreatesIndexesThatAreUsed(t *testing.T) {
	db := newDB(t)
	up(t, db)
	for query, index := range map[string]string{
		"SELECT id FROM outbox_messages WHERE available_at <= 1 ORDER BY available_at, id": "outbox_messages_due_idx",
		"DELETE FROM outbox_archive WHERE status = 'processed' AND processed_at < 1":       "outbox_archive_processed_idx",
		"SELECT count(*) FROM outbox_archive WHERE status = 'failed'":                      "outbox_archive_failed_idx",
		"DELETE FROM outbox_processed WHERE processed_at < 1":                              "outbox_processed_at_idx",
	} {
		var id, parent, unused int
		var plan string
		require.NoError(t, db.QueryRowContext(t.Context(), "EXPLAIN QUERY PLAN "+query).Scan(&id, &parent, &unused, &plan))
		assert.Contains(t, plan, index, query)
	}
}

func TestUp_Again_ChangesNothing(t *testing.T) {
	db := newDB(t)
	up(t, db)
	exec(t, db, "INSERT INTO outbox_messages (topic, payload) VALUES ('orders', 'one')")
	before := schemaOf(t, db)
	up(t, db)
	assert.Equal(t, before, schemaOf(t, db))
	assert.Equal(t, 1, value[int](t, db, "SELECT count(*) FROM outbox_messages"))
	assert.Equal(t, 2, value[int](t, db, "SELECT count(*) FROM outbox_version"))
}

func TestUp_OfACurrentSchema_OnlyReads(t *testing.T) {
	dsn := newDSN(t, "_busy_timeout=5000")
	up(t, open(t, dsn))
	up(t, open(t, dsn+"&mode=ro"))
}

func TestUp_LeavesTheSchemaOfANewerReleaseAlone(t *testing.T) {
	db := newDB(t)
	up(t, db)
	exec(t, db, "INSERT INTO outbox_version (version_id, is_applied) VALUES (1000, 1)")
	up(t, db)
	assert.EqualValues(t, 1000, version(t, db))
}

func TestUp_WorksOnASingleConnection(t *testing.T) {
	db := open(t, ":memory:")
	db.SetMaxOpenConns(1)
	up(t, db)
	assert.EqualValues(t, latest, version(t, db))
	down(t, db)
	assert.Empty(t, schemaOf(t, db))
}

func TestUp_SaysWhatToDo_WhenAnotherToolMadeTheTables(t *testing.T) {
	db := newDB(t)
	statements, err := migrations.SQL(driver, 0, latest)
	require.NoError(t, err)
	exec(t, db, statements)

	err = migrations.Up(t.Context(), db, driver)
	require.ErrorContains(t, err, `"outbox_messages" was not created by migrations.Up`)
	require.ErrorContains(t, err, "already exists")
	require.ErrorContains(t, err, "WithPrefix")
	assert.Zero(t, version(t, db))
}

func TestUp_AppliesNothing_WhenItFailsMidway(t *testing.T) {
	db := newDB(t)
	exec(t, db, "CREATE TABLE outbox_processed (of_the_user TEXT)")
	require.Error(t, migrations.Up(t.Context(), db, driver))
	assert.ElementsMatch(t, []string{"outbox_processed", "outbox_version"}, namesOf(t, db))

	exec(t, db, "DROP TABLE outbox_processed")
	up(t, db)
	assert.ElementsMatch(t, tablesAndIndexes, namesOf(t, db))
}

func TestUp_StopsWhenItsContextHasEnded(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	db := newDB(t)
	require.ErrorIs(t, migrations.Up(ctx, db, driver), context.Canceled)
	require.ErrorIs(t, migrations.Down(ctx, db, driver), context.Canceled)
	_, err := migrations.Version(ctx, db, driver)
	require.ErrorIs(t, err, context.Canceled)
	assert.Empty(t, schemaOf(t, db))
}

func TestDown_LeavesNothing(t *testing.T) {
	db := newDB(t)
	exec(t, db, "CREATE TABLE of_the_user (id INTEGER)")
	up(t, db)
	exec(t, db, "INSERT INTO outbox_messages (topic, payload) VALUES ('orders', 'one')")
	down(t, db)
	assert.Equal(t, []string{"of_the_user"}, namesOf(t, db))
	assert.Zero(t, version(t, db))
}

func TestDown_WhereThereIsNothing_DoesNothing(t *testing.T) {
	db := newDB(t)
	down(t, db)
	assert.Empty(t, schemaOf(t, db))
	up(t, db)
	down(t, db)
	down(t, db)
	assert.Empty(t, schemaOf(t, db))
}

func TestDown_FinishesWhatWasBegun(t *testing.T) {
	t.Run("by an Up that was killed before its first migration", func(t *testing.T) {
		db := newDB(t)
		exec(t, db, "CREATE TABLE outbox_version (id INTEGER PRIMARY KEY, version_id INTEGER)")
		down(t, db)
		assert.Empty(t, schemaOf(t, db))
	})
	t.Run("by hand", func(t *testing.T) {
		db := newDB(t)
		up(t, db)
		exec(t, db, "DROP TABLE outbox_processed")
		down(t, db)
		assert.Empty(t, schemaOf(t, db))
	})
}

func TestDown_LeavesTheTablesOfAnotherToolAlone(t *testing.T) {
	db := newDB(t)
	statements, err := migrations.SQL(driver, 0, latest)
	require.NoError(t, err)
	exec(t, db, statements)
	before := schemaOf(t, db)
	down(t, db)
	assert.Equal(t, before, schemaOf(t, db))
}

func TestDown_LeavesTheSchemaOfANewerReleaseAlone(t *testing.T) {
	db := newDB(t)
	up(t, db)
	exec(t, db, "INSERT INTO outbox_version (version_id, is_applied) VALUES (1000, 1)")
	require.ErrorContains(t, migrations.Down(t.Context(), db, driver),
		"the schema is at version 1000 and this release knows versions up to 1")
	assert.ElementsMatch(t, tablesAndIndexes, namesOf(t, db))
}

func TestUp_AfterDown_BeginsAfresh(t *testing.T) {
	db := newDB(t)
	up(t, db)
	before := schemaOf(t, db)
	exec(t, db, "INSERT INTO outbox_messages (topic, payload) VALUES ('orders', 'one')")
	down(t, db)
	up(t, db)
	assert.Equal(t, before, schemaOf(t, db))
	assert.EqualValues(t, latest, version(t, db))
	assert.Zero(t, value[int](t, db, "SELECT count(*) FROM outbox_messages"))
}

func TestVersion_OfAnEmptyDatabase_IsZeroAndCreatesNothing(t *testing.T) {
	db := newDB(t)
	assert.Zero(t, version(t, db))
	assert.Empty(t, schemaOf(t, db))
}

func TestSQL_MakesTheSchemaThatUpMakes(t *testing.T) {
	for _, prefix := range []string{"", "billing_"} {
		t.Run("prefix "+prefix, func(t *testing.T) {
			byUp, bySQL := newDB(t), newDB(t)
			up(t, byUp, migrations.WithPrefix(prefix))
			statements, err := migrations.SQL(driver, 0, latest, migrations.WithPrefix(prefix))
			require.NoError(t, err)
			exec(t, bySQL, statements)

			want := schemaOf(t, byUp)
			delete(want, prefix+"outbox_version")
			assert.Equal(t, want, schemaOf(t, bySQL))
			assert.Len(t, want, len(tablesAndIndexes)-1)
			assert.Equal(t, 1, value[int](t, bySQL, "SELECT count(*) FROM "+prefix+"outbox_slots"))

			statements, err = migrations.SQL(driver, latest, 0, migrations.WithPrefix(prefix))
			require.NoError(t, err)
			exec(t, bySQL, statements)
			assert.Empty(t, schemaOf(t, bySQL))
		})
	}
}

func TestSQL_IsPlain(t *testing.T) {
	for _, way := range [][2]int64{{0, latest}, {latest, 0}} {
		statements, err := migrations.SQL(driver, way[0], way[1])
		require.NoError(t, err)
		assert.NotContains(t, strings.ToLower(statements), "goose")
		assert.NotContains(t, statements, "outbox_version")
		assert.Equal(t, strings.TrimSpace(statements)+"\n", statements)
	}
}

func TestSQL_FromAVersionToItself_IsEmpty(t *testing.T) {
	for v := range int64(latest + 1) {
		statements, err := migrations.SQL(driver, v, v)
		require.NoError(t, err)
		assert.Empty(t, statements)
	}
}

func TestSQL_RefusesVersionsThatDoNotExist_NamingThoseThatDo(t *testing.T) {
	for _, way := range [][2]int64{{-1, latest}, {0, -1}, {0, latest + 1}, {latest + 1, 0}, {1000, 1000}} {
		statements, err := migrations.SQL(driver, way[0], way[1])
		require.ErrorContains(t, err, "this release has 0 to 1", "%v", way)
		assert.Empty(t, statements)
	}
}

func TestWithPrefix_KeepsOutboxesOfOneDatabaseApart(t *testing.T) {
	db := newDB(t)
	long := strings.Repeat("p", 30)
	prefixes := []string{"", "billing_", "shipping_", "_", "Outbox_", long}
	for i, prefix := range prefixes {
		assert.Zero(t, version(t, db, migrations.WithPrefix(prefix)))
		up(t, db, migrations.WithPrefix(prefix))
		assert.Len(t, schemaOf(t, db), (i+1)*len(tablesAndIndexes))
		for _, name := range tablesAndIndexes {
			assert.Contains(t, schemaOf(t, db), prefix+name)
			// What PostgreSQL would cut off.
			assert.LessOrEqual(t, len(prefix+name), 63)
		}
	}
	exec(t, db, "INSERT INTO billing_outbox_messages (topic, payload) VALUES ('orders', 'one')")
	for i, prefix := range prefixes {
		if prefix == "billing_" {
			continue
		}
		down(t, db, migrations.WithPrefix(prefix))
		assert.Zero(t, version(t, db, migrations.WithPrefix(prefix)), i)
	}
	assert.Len(t, schemaOf(t, db), len(tablesAndIndexes))
	assert.EqualValues(t, latest, version(t, db, migrations.WithPrefix("billing_")))
	assert.Equal(t, 1, value[int](t, db, "SELECT count(*) FROM billing_outbox_messages"))
}

// SQLite takes Billing_ and billing_ for the same tables.
func TestWithPrefix_InAnotherCase_IsTheSameOutbox(t *testing.T) {
	db := newDB(t)
	up(t, db, migrations.WithPrefix("billing_"))
	assert.EqualValues(t, latest, version(t, db, migrations.WithPrefix("Billing_")))
	up(t, db, migrations.WithPrefix("Billing_"))
	assert.Len(t, schemaOf(t, db), len(tablesAndIndexes))
}

// everyCall runs all functions with the same options.
func everyCall(ctx context.Context, db *sql.DB, driverName string, opts ...migrations.Option) map[string]error {
	_, versionErr := migrations.Version(ctx, db, driverName, opts...)
	_, sqlErr := migrations.SQL(driverName, 0, latest, opts...)
	return map[string]error{
		"Up":      migrations.Up(ctx, db, driverName, opts...),
		"Down":    migrations.Down(ctx, db, driverName, opts...),
		"Version": versionErr,
		"SQL":     sqlErr,
	}
}

func TestWithPrefix_RefusesWhatCouldInjectSQL(t *testing.T) {
	db := newDB(t)
	for _, name := range []string{
		`a"b`, "a'b", "a`b", "a b", "a;b", "a.b", "a-b", "a\nb", "a\n", "a\x00b", "a%sb", "1a", "é_", "ａ_", "a\xffb",
		"[a]", " ", `x"; DROP TABLE outbox_messages; --`, strings.Repeat("a", 31),
	} {
		for call, err := range everyCall(t.Context(), db, driver, migrations.WithPrefix(name)) {
			require.ErrorContains(t, err, "the prefix", "%s %q", call, name)
		}
		for call, err := range everyCall(t.Context(), db, driver, migrations.WithSchema(name)) {
			require.ErrorContains(t, err, "the schema", "%s %q", call, name)
		}
	}
	assert.Empty(t, schemaOf(t, db))
}

func TestWithSchema_IsAnErrorOnSQLite(t *testing.T) {
	for call, err := range everyCall(t.Context(), newDB(t), driver, migrations.WithSchema("main")) {
		require.ErrorContains(t, err, `SQLite has no schemas: leave out WithSchema("main")`, call)
	}
}

func TestUnknownDrivers_AreRefused_NamingThoseThatAreKnown(t *testing.T) {
	db := newDB(t)
	for _, name := range []string{"", "mysql", "mssql", "SQLite3", "sqlite3 ", "Postgres", "postgresql"} {
		for call, err := range everyCall(t.Context(), db, name) {
			require.ErrorContains(t, err, `this release has them for "sqlite3", "sqlite", "postgres", "pgx", "pgx/v5"`, "%s %q", call, name)
		}
	}
	assert.Empty(t, schemaOf(t, db))
}

func TestANilDatabase_IsAnError(t *testing.T) {
	errs := everyCall(t.Context(), nil, driver)
	delete(errs, "SQL")
	for call, err := range errs {
		require.ErrorContains(t, err, "nil *sql.DB", call)
	}
}

func TestAClosedDatabase_IsAnError(t *testing.T) {
	db, err := sql.Open(driver, newDSN(t, ""))
	require.NoError(t, err)
	require.NoError(t, db.Close())
	errs := everyCall(t.Context(), db, driver)
	delete(errs, "SQL")
	for call, err := range errs {
		require.Error(t, err, call)
		require.NotErrorIs(t, err, context.DeadlineExceeded)
		require.NoError(t, errors.Unwrap(errors.Unwrap(err)), "%s retried: %v", call, err)
	}
}
