package migrations_test

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	osexec "os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox/internal/pgtest"
	"github.com/watermill-outbox/outbox/migrations"
)

// A way is a server, and how a database on it is opened.
type way struct {
	server pgtest.Server
	driver string
	params string
}

const (
	oneShot = "default_query_exec_mode=exec"
	simple  = "default_query_exec_mode=simple_protocol"
	pq      = "sslmode=disable"
	binary  = "sslmode=disable&binary_parameters=yes"
)

// The first two are as different as any; PgBouncer has no prepared statements, which pgx uses if not told otherwise.
var ways = []way{
	{pgtest.V15, "pgx", ""},
	{pgtest.V18, "postgres", pq},
	{pgtest.V15, "pgx", oneShot},
	{pgtest.V15, "pgx", simple},
	{pgtest.V15, "postgres", pq},
	{pgtest.V15, "postgres", binary},
	{pgtest.V18, "pgx", ""},
	{pgtest.V18, "pgx", oneShot},
	{pgtest.V18, "pgx", simple},
	{pgtest.V18, "postgres", binary},
	{pgtest.PgBouncer, "pgx", oneShot},
	{pgtest.PgBouncer, "pgx", simple},
	{pgtest.PgBouncer, "postgres", pq},
	{pgtest.PgBouncer, "postgres", binary},
}

func (w way) String() string { return strings.Join([]string{w.server.Name, w.driver, w.params}, " ") }

func (w way) open(t *testing.T, more ...string) *sql.DB {
	t.Helper()
	db, err := sql.Open(w.driver, w.server.URL()+"?"+strings.Join(append(more, w.params), "&"))
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, db.Close()) })
	return db
}

func (w way) up(t *testing.T, db *sql.DB, opts ...migrations.Option) {
	t.Helper()
	require.NoError(t, migrations.Up(t.Context(), db, w.driver, opts...))
}

func (w way) down(t *testing.T, db *sql.DB, opts ...migrations.Option) {
	t.Helper()
	require.NoError(t, migrations.Down(t.Context(), db, w.driver, opts...))
}

func (w way) version(t *testing.T, db *sql.DB, opts ...migrations.Option) int64 {
	t.Helper()
	v, err := migrations.Version(t.Context(), db, w.driver, opts...)
	require.NoError(t, err)
	return v
}

// overPostgres runs do on an empty schema for each of the ways.
func overPostgres(t *testing.T, ways []way, do func(t *testing.T, w way, schema string)) {
	t.Helper()
	for _, w := range ways {
		t.Run(w.String(), func(t *testing.T) { do(t, w, pgtest.Schema(t, w.server)) })
	}
}

// catalog returns all that a server knows of the tables in a schema whose names begin with prefix, a line for each
// column, index, constraint, sequence and storage setting, with "schema" for the schema's name.
func catalog(t *testing.T, s pgtest.Server, schema, prefix string) []string {
	t.Helper()
	db := way{s, "pgx", oneShot}.open(t)
	rows, err := db.QueryContext(t.Context(), `
		SELECT concat_ws(' ', table_name, ordinal_position, column_name, data_type, is_nullable, column_default,
			identity_generation, generation_expression)
		FROM information_schema.columns WHERE table_schema = $1 AND starts_with(table_name, $2)
		UNION ALL
		SELECT indexdef FROM pg_indexes WHERE schemaname = $1 AND starts_with(tablename, $2)
		UNION ALL
		SELECT concat_ws(' ', c.conrelid::regclass, c.conname, pg_get_constraintdef(c.oid))
		FROM pg_constraint c JOIN pg_class t ON t.oid = c.conrelid
		WHERE c.connamespace = $1::regnamespace AND starts_with(t.relname, $2)
		UNION ALL
		SELECT concat_ws(' ', sequencename, start_value, increment_by, cycle, cache_size)
		FROM pg_sequences WHERE schemaname = $1 AND starts_with(sequencename, $2)
		UNION ALL
		SELECT concat_ws(' ', relname, reloptions)
		FROM pg_class WHERE relnamespace = $1::regnamespace AND relkind = 'r' AND starts_with(relname, $2)
		ORDER BY 1`, schema, prefix)
	require.NoError(t, err)
	defer func() { require.NoError(t, rows.Close()) }()
	var lines []string
	for rows.Next() {
		var line string
		require.NoError(t, rows.Scan(&line))
		lines = append(lines, strings.ReplaceAll(line, schema, "schema"))
	}
	require.NoError(t, rows.Err())
	return lines
}

func tablesOf(t *testing.T, s pgtest.Server, schema string) []string {
	t.Helper()
	db := way{s, "pgx", oneShot}.open(t)
	names := value[string](t, db, "SELECT coalesce(string_agg(tablename, ' '), '') FROM pg_tables WHERE schemaname = '"+schema+"'")
	return strings.Fields(names)
}

var postgresTables = []string{
	"outbox_messages", "outbox_archive", "outbox_slots", "outbox_relays", "outbox_processed", "outbox_version",
}

func TestPostgres_UpAgainDownAndUp_ThroughEveryDriver(t *testing.T) {
	overPostgres(t, ways, func(t *testing.T, w way, schema string) {
		in := migrations.WithSchema(schema)
		db := w.open(t)
		assert.Zero(t, w.version(t, db, in))
		assert.Empty(t, tablesOf(t, w.server, schema), "Version creates nothing")

		w.up(t, db, in)
		assert.ElementsMatch(t, postgresTables, tablesOf(t, w.server, schema))
		assert.EqualValues(t, latest, w.version(t, db, in))
		assert.Equal(t, 64, value[int](t, db, "SELECT count(*) FROM "+schema+".outbox_slots WHERE slot BETWEEN 0 AND 63"))
		made := catalog(t, w.server, schema, "")

		exec(t, db, "INSERT INTO "+schema+".outbox_messages (topic) VALUES ('orders')")
		w.up(t, db, in)
		assert.Equal(t, made, catalog(t, w.server, schema, ""))
		assert.Equal(t, 1, value[int](t, db, "SELECT count(*) FROM "+schema+".outbox_messages"))
		assert.Equal(t, latest+1, value[int](t, db, "SELECT count(*) FROM "+schema+".outbox_version"))

		w.down(t, db, in)
		assert.Empty(t, catalog(t, w.server, schema, ""))
		assert.Zero(t, w.version(t, db, in))
		w.down(t, db, in)

		w.up(t, db, in)
		assert.Equal(t, made, catalog(t, w.server, schema, ""))
		assert.Zero(t, value[int](t, db, "SELECT count(*) FROM "+schema+".outbox_messages"))
	})
}

func TestPostgres_Up_LetsAnyLanguageInsert_WithTopicAndPayloadOnly(t *testing.T) {
	overPostgres(t, ways[:2], func(t *testing.T, w way, schema string) {
		db := w.open(t)
		w.up(t, db, migrations.WithSchema(schema))
		messages := schema + ".outbox_messages"
		exec(t, db, "INSERT INTO "+messages+" (topic, payload) SELECT 'orders', 'one' FROM generate_series(1, 500)")
		assert.Equal(t, 500, value[int](t, db, `SELECT count(DISTINCT uuid) FROM `+messages+` WHERE key = ''
			AND headers::text = '{}' AND retries = 0 AND available_at IS NULL AND last_error = ''
			AND created_at BETWEEN clock_timestamp() - interval '1 minute' AND clock_timestamp()`))
		assert.Equal(t, 500, value[int](t, db, "SELECT max(id) - min(id) + 1 FROM "+messages))
		// 500 at random leave one of 64 out once in 40 times, and ten never.
		assert.Greater(t, value[int](t, db, "SELECT count(DISTINCT slot) FROM "+messages), 54)
		assert.True(t, value[bool](t, db, "SELECT min(slot) >= 0 AND max(slot) < 64 FROM "+messages))

		exec(t, db, "INSERT INTO "+messages+" (topic, key) SELECT 'orders', 'k' FROM generate_series(1, 50)")
		assert.Equal(t, 1, value[int](t, db, "SELECT count(DISTINCT slot) FROM "+messages+" WHERE key = 'k'"))

		exec(t, db, "DELETE FROM "+messages)
		exec(t, db, "INSERT INTO "+messages+" (topic) VALUES ('orders')")
		assert.Equal(t, 551, value[int](t, db, "SELECT id FROM "+messages), "no id is given twice")
	})
}

func TestPostgres_Up_RefusesRowsThatNoRelayWouldFind(t *testing.T) {
	overPostgres(t, ways[:2], func(t *testing.T, w way, schema string) {
		db := w.open(t)
		w.up(t, db, migrations.WithSchema(schema))
		exec(t, db, "INSERT INTO "+schema+".outbox_processed (consumer_group, message_id) VALUES ('a', 'm'), ('b', 'm')")
		for _, statement := range []string{
			"outbox_messages (topic, id) VALUES ('t', 7)",
			"outbox_messages (topic, slot) VALUES ('t', 7)",
			"outbox_messages (topic, key) VALUES ('t', null)",
			"outbox_messages (topic, uuid) VALUES ('t', null)",
			"outbox_archive VALUES (1, 'u', 't', '', '', '{}', 0, null, '', now(), 'pending', now())",
			"outbox_processed (consumer_group, message_id) VALUES ('a', 'm')",
		} {
			_, err := db.ExecContext(t.Context(), "INSERT INTO "+schema+"."+statement)
			require.Error(t, err, statement)
		}
		exec(t, db, "INSERT INTO "+schema+".outbox_archive VALUES (1, 'u', 't', '', '', '{}', 0, null, '', now(), 'failed', now())")
	})
}

// Stores call the tables public.outbox_... too.
func TestPostgres_WithoutASchema_IsPublic_WhateverTheSearchPathSays(t *testing.T) {
	overPostgres(t, ways[:2], func(t *testing.T, w way, schema string) {
		// Others use the schema too.
		prefix := schema + "_"
		with := migrations.WithPrefix(prefix)
		for _, path := range []string{schema, "''"} {
			db := w.open(t, "search_path="+path)
			t.Cleanup(func() { assert.NoError(t, migrations.Down(context.Background(), db, w.driver, with)) })
			w.up(t, db, with)
			assert.Empty(t, tablesOf(t, w.server, schema))
			assert.EqualValues(t, latest, w.version(t, db, with, migrations.WithSchema("public")))
			made := catalog(t, w.server, "public", prefix)

			w.down(t, db, with)
			assert.Empty(t, catalog(t, w.server, "public", prefix))
			statements, err := migrations.SQL(w.driver, 0, latest, with)
			require.NoError(t, err)
			exec(t, db, statements)
			assert.Subset(t, made, catalog(t, w.server, "public", prefix))
			assert.Empty(t, tablesOf(t, w.server, schema))
			statements, err = migrations.SQL(w.driver, latest, 0, with)
			require.NoError(t, err)
			exec(t, db, statements)
			assert.Empty(t, catalog(t, w.server, "public", prefix))
		}
	})
}

func TestPostgres_SchemasAndPrefixes_KeepOutboxesApart(t *testing.T) {
	overPostgres(t, ways[:2], func(t *testing.T, w way, schema string) {
		db := w.open(t)
		outboxes := [][]migrations.Option{}
		for _, s := range []string{schema, pgtest.Schema(t, w.server)} {
			for _, prefix := range []string{"", "billing_", "Billing_", strings.Repeat("p", 30)} {
				outboxes = append(outboxes, []migrations.Option{migrations.WithSchema(s), migrations.WithPrefix(prefix)})
			}
		}
		for _, outbox := range outboxes {
			assert.Zero(t, w.version(t, db, outbox...))
			w.up(t, db, outbox...)
		}
		assert.Len(t, tablesOf(t, w.server, schema), 4*len(postgresTables))
		for _, outbox := range outboxes[1:] {
			w.down(t, db, outbox...)
		}
		assert.ElementsMatch(t, postgresTables, tablesOf(t, w.server, schema))
		assert.EqualValues(t, latest, w.version(t, db, outboxes[0]...))
	})
}

func TestPostgres_RefusesNamesThatCouldInjectSQL(t *testing.T) {
	for _, name := range []string{`a"b`, "a'b", "a.b", "a b", "a$$b", "$1", "1a", "é_", "a\x00b", "a\n", strings.Repeat("a", 31)} {
		for _, driver := range []string{"postgres", "pgx"} {
			for call, err := range everyCall(t.Context(), newDB(t), driver, migrations.WithPrefix(name)) {
				require.ErrorContains(t, err, "the prefix", "%s %q", call, name)
			}
			for call, err := range everyCall(t.Context(), newDB(t), driver, migrations.WithSchema(name)) {
				require.ErrorContains(t, err, "the schema", "%s %q", call, name)
			}
		}
	}
}

// psql runs statements as users do and stops at the first error.
func psql(t *testing.T, s pgtest.Server, schema, statements string, args ...string) {
	t.Helper()
	path, err := osexec.LookPath("psql")
	require.NoError(t, err, "psql comes with PostgreSQL's client: apt-get install postgresql-client")
	args = append([]string{"--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--file=-", s.DirectURL()}, args...)
	cmd := osexec.CommandContext(t.Context(), path, args...)
	cmd.Env = append(os.Environ(), "PGOPTIONS=-c search_path="+schema)
	cmd.Stdin = strings.NewReader(statements)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	assert.Empty(t, string(out))
}

func TestPostgres_SQL_InPsql_MakesTheSchemaThatUpMakes(t *testing.T) {
	for _, prefix := range []string{"", "Billing_"} {
		overPostgres(t, ways[:2], func(t *testing.T, w way, schema string) {
			byUp, bySQL := schema, pgtest.Schema(t, w.server)
			opts := []migrations.Option{migrations.WithSchema(bySQL), migrations.WithPrefix(prefix)}
			db := w.open(t)
			w.up(t, db, migrations.WithSchema(byUp), migrations.WithPrefix(prefix))
			exec(t, db, fmt.Sprintf(`DROP TABLE %s."%soutbox_version"`, byUp, prefix))
			want := catalog(t, w.server, byUp, "")
			require.NotEmpty(t, want)

			statements, err := migrations.SQL(w.driver, 0, latest, opts...)
			require.NoError(t, err)
			psql(t, w.server, byUp, statements, "--single-transaction")
			assert.Equal(t, want, catalog(t, w.server, bySQL, ""))
			assert.Equal(t, 64, value[int](t, db, fmt.Sprintf(`SELECT count(*) FROM %s."%soutbox_slots"`, bySQL, prefix)))

			statements, err = migrations.SQL(w.driver, latest, 0, opts...)
			require.NoError(t, err)
			psql(t, w.server, byUp, statements)
			assert.Empty(t, catalog(t, w.server, bySQL, ""))
			assert.Equal(t, want, catalog(t, w.server, byUp, ""))
		})
	}
}

// The files run as they are, and in the schema of the connection. Running one whole goes up and down.
func TestPostgres_Files_RunInPsqlAsTheyAre(t *testing.T) {
	files, err := os.ReadDir("postgres")
	require.NoError(t, err)
	overPostgres(t, ways[:2], func(t *testing.T, w way, schema string) {
		for _, file := range files {
			text, err := os.ReadFile("postgres/" + file.Name())
			require.NoError(t, err)
			psql(t, w.server, schema, string(text))
		}
		assert.Equal(t, []string{"outbox_version"}, tablesOf(t, w.server, schema))
	})
}
