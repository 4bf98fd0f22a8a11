package pgdialect

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox/internal/pgtest"
	"github.com/watermill-outbox/outbox/internal/sqlname"
)

const (
	jitCost    = 100_000 // the default of jit_above_cost
	manyRows   = 300_000
	batchSize  = 1000
	keptRounds = 8 // PostgreSQL keeps a plan from the sixth time on, if it looks cheap enough

	// What is read by a range of ids is to come in the order of the index, and not to be sorted.
	inOrder = "in order of "
	byID    = "outbox_messages_pkey"
	byDue   = "outbox_messages_due_idx"
	failed  = "outbox_archive_failed_idx"
	archive = "outbox_archive_pkey"
	sample  = "Sample Scan of outbox_messages"
)

// paths are how statements may read the tables that grow: by indexes, or as said.
var paths = []struct {
	name string
	args []string
	by   []string
}{
	{"insert", []string{"'u'", "'t'", "'k'", "''", "'{}'", "NULL"}, nil},
	{"insert_many", []string{uuids, uuids, uuids, "'{}'", uuids, uuids}, nil},
	{"read", []string{"1000", "9223372036854775807", "1000", "7"}, []string{inOrder + byID}},
	{"read_runs", []string{ids, ids, "1000", "7"}, []string{inOrder + byID}},
	{"read_ids", []string{ids, "1000", "7"}, []string{byID}},
	{"read_due", []string{"'-infinity'", "0", "now()", "9223372036854775807", "1000", "7"}, []string{inOrder + byDue}},
	{"sweep", []string{"1000", "9223372036854775807", "5000"}, []string{inOrder + byID}},
	{"delete", []string{ids, uuids}, []string{byID}},
	{"settle", []string{ids, uuids, uuids, ids, uuids, ids, uuids, ids, uuids, ids, ids, uuids}, []string{byID}},
	{"archive_purge", []string{"now()", "1000", "'-infinity'"}, []string{"outbox_archive_processed_idx", "Tid Scan of outbox_archive"}},
	{"failed_list", []string{"1000", "1000"}, []string{failed}},
	{"failed_requeue", []string{ids}, []string{failed, archive}},
	{"failed_delete", []string{ids}, []string{failed, archive}},
	{"failed_count", nil, []string{failed}},
	{"stats", nil, []string{byID, byDue, failed, sample}},
	{"stats_topics", nil, []string{byID, sample}},
	{"processed_mark", []string{"'g'", "'m'", "NULL"}, nil},
	{"processed_get", []string{"'g'", "'m'"}, []string{"outbox_processed_pkey"}},
	{"processed_purge", []string{"now()", "1000", "'-infinity'"}, []string{"outbox_processed_at_idx", "Tid Scan of outbox_processed"}},
}

var ids, uuids = func() (string, string) {
	numbers, words := make([]int64, batchSize), make([]string, batchSize)
	for i := range numbers {
		numbers[i], words[i] = int64(i+1), fmt.Sprint(i)
	}
	return "'" + integers(numbers) + "'", "'" + texts(words) + "'"
}()

// The statistics are as autovacuum may have left them, at the latest a minute ago: a million messages may have come or gone
// since. What they must not do is make a statement read a table: then each fetch and each mark would.
func TestQueries_GoByAnIndex_WhateverTheStatistics(t *testing.T) {
	t.Parallel()
	for _, server := range []pgtest.Server{pgtest.V15, pgtest.V18} {
		if testing.Short() && server != pgtest.V15 {
			continue
		}
		t.Run(server.Name, func(t *testing.T) {
			t.Parallel()
			schema := migrated(t, server)
			db := connect(t, server)
			prepare(t, db, schema)
			setUp := func(statements ...string) {
				for _, statement := range statements {
					exec(t, db, render(t, schema, statement))
				}
			}
			for _, table := range []string{"outbox_messages", "outbox_archive", "outbox_processed"} {
				setUp("ALTER TABLE " + table + " SET (autovacuum_enabled = false)")
			}
			const analyze = "ANALYZE outbox_messages, outbox_archive, outbox_processed"

			setUp(analyze)
			kept := connect(t, server)
			prepare(t, kept, schema)
			for range keptRounds {
				for _, path := range paths {
					explain(t, kept, path.name, path.args)
				}
			}
			setUp(fill(30_000)...)
			for _, path := range paths {
				if slices.Equal(path.by, []string{byID}) { // one by one, though reading so small a table looks cheaper
					assertPath(t, db, path.name, path.args, path.by, "30,000 rows")
				}
			}
			setUp(fill(manyRows)...)
			assertPaths(t, db, "empty when analyzed, then filled")
			for _, path := range paths {
				if len(path.args) > 0 { // PostgreSQL keeps the plan of any other, until autovacuum analyzes the table
					assertPath(t, kept, path.name, path.args, path.by, "planned when empty, then filled")
				}
			}
			setUp(analyze)
			assertPaths(t, db, "full, analyzed")
			for _, statement := range []string{analyze, strings.Replace(analyze, "ANALYZE", "VACUUM (ANALYZE)", 1)} {
				whileFilled(t, server, db, schema, statement)
				for _, path := range paths {
					// A join would compare all rows with all ids, and a sort each time read all that is left of the backlog.
					if slices.Contains(path.by, byID) || slices.Contains(path.by, inOrder+byID) || slices.Contains(path.by, inOrder+byDue) {
						assertPath(t, db, path.name, path.args, path.by, "while filled: "+statement)
					}
				}
			}
			setUp(analyze)
			setUp("DELETE FROM outbox_messages", "DELETE FROM outbox_archive", "DELETE FROM outbox_processed")
			assertPaths(t, db, "full when analyzed, then emptied")
		})
	}
}

// whileFilled has the statement run when the tables have pages and no row that is committed.
func whileFilled(t *testing.T, server pgtest.Server, db *pgx.Conn, schema, statement string) {
	t.Helper()
	exec(t, db, render(t, schema, "TRUNCATE outbox_messages, outbox_archive, outbox_processed"))
	writer := connect(t, server)
	exec(t, writer, "BEGIN")
	for _, statement := range fill(manyRows / 3) {
		exec(t, writer, render(t, schema, statement))
	}
	exec(t, db, render(t, schema, statement))
	exec(t, writer, "COMMIT")
}

func fill(rows int) []string {
	return []string{
		fmt.Sprintf(`INSERT INTO outbox_messages (topic, key, retries, available_at)
			SELECT 'topic', i %% 1000, i %% 7, CASE WHEN i %% 100 = 0 THEN now() + (i - 150000) * interval '1 second' END
			FROM generate_series(1, %d) i`, rows),
		fmt.Sprintf(`INSERT INTO outbox_archive
			SELECT i, '', 'topic', '', '', '{}', 0, NULL, '', now(), CASE WHEN i %% 1000 = 0 THEN 'failed' ELSE 'processed' END, now()
			FROM generate_series(1, %d) i ON CONFLICT DO NOTHING`, rows/3),
		fmt.Sprintf(`INSERT INTO outbox_processed
			SELECT 'group', i FROM generate_series(1, %d) i ON CONFLICT DO NOTHING`, rows/3),
	}
}

// assertPaths looks at plans for any values and plans for the given ones, made now.
func assertPaths(t *testing.T, db *pgx.Conn, state string) {
	t.Helper()
	for _, mode := range []string{"force_generic_plan", "force_custom_plan"} {
		exec(t, db, "SET plan_cache_mode = "+mode)
		exec(t, db, "DISCARD PLANS")
		for _, path := range paths {
			assertPath(t, db, path.name, path.args, path.by, state+", "+mode)
		}
	}
}

func assertPath(t *testing.T, db *pgx.Conn, name string, args, by []string, state string) {
	t.Helper()
	plan := explain(t, db, name, args)
	used := plan.paths()
	for _, path := range used {
		if !slices.Contains(by, path) {
			path = strings.TrimPrefix(path, inOrder)
		}
		assert.Contains(t, by, path, "%s: %s: %s", state, name, plan)
	}
	assert.Equal(t, len(by) > 0, len(used) > 0, "%s: %s: %s", state, name, plan)
	if !isRead(name) {
		assert.Less(t, plan.Cost, float64(jitCost), "%s: %s", state, name)
	}
}

// isRead tells of the statements that come after read_settings.
func isRead(name string) bool { return name == "read" || name == "read_runs" }

// A plan is a node of what EXPLAIN tells.
type plan struct {
	Type     string  `json:"Node Type"`
	Table    string  `json:"Relation Name"`
	Index    string  `json:"Index Name"`
	Rows     float64 `json:"Plan Rows"`
	Cost     float64 `json:"Total Cost"`
	Children []plan  `json:"Plans"`
}

func (p plan) String() string {
	text, _ := json.Marshal(p) //nolint:errchkjson // texts and numbers
	return string(text)
}

// paths are how the tables that grow are read.
func (p plan) paths() (all []string) {
	for _, child := range p.Children {
		all = append(all, child.paths()...)
	}
	of := map[string]bool{"outbox_messages": true, "outbox_archive": true, "outbox_processed": true}
	switch {
	case strings.HasPrefix(p.Type, "Gather"):
		return append(all, "parallel workers")
	case p.Type == "Sort" && p.Rows > batchSize:
		return append(all, fmt.Sprintf("Sort of %.0f rows", p.Rows))
	case !strings.HasSuffix(p.Type, "Scan") || !of[p.Table]:
		return all
	case p.Type == "Bitmap Heap Scan":
		return append(all, p.Children[0].Index)
	case p.Index != "":
		return append(all, inOrder+p.Index)
	}
	return append(all, p.Type+" of "+p.Table)
}

func explain(t *testing.T, db *pgx.Conn, name string, args []string) plan {
	t.Helper()
	execute := name
	if len(args) > 0 {
		execute += "(" + strings.Join(args, ", ") + ")"
	}
	var text []byte
	require.NoError(t, pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) error {
		if isRead(name) {
			var mode string
			require.NoError(t, tx.QueryRow(t.Context(), "SHOW plan_cache_mode").Scan(&mode))
			exec(t, db, "EXECUTE read_settings")
			if mode == "force_custom_plan" { // as for a driver that puts the values into the statement
				exec(t, db, "SET LOCAL plan_cache_mode = "+mode)
			}
		}
		return tx.QueryRow(t.Context(), "EXPLAIN (FORMAT JSON) EXECUTE "+execute).Scan(&text)
	}), name)
	var plans []struct{ Plan plan }
	require.NoError(t, json.Unmarshal(text, &plans)) //nolint:musttag // the one name is the field's
	require.Len(t, plans, 1)
	return plans[0].Plan
}

func prepare(t *testing.T, db *pgx.Conn, schema string) {
	t.Helper()
	exec(t, db, "PREPARE read_settings AS "+query(t, schema, "read_settings"))
	for _, path := range paths {
		exec(t, db, "PREPARE "+path.name+" AS "+query(t, schema, path.name))
	}
}

// query returns a statement as the stores run it.
func query(t *testing.T, schema, name string) string {
	t.Helper()
	text, err := fs.ReadFile(queryFiles, "queries/"+name+".sql")
	require.NoError(t, err)
	return strings.TrimRight(render(t, schema, string(text)), "; \n")
}

func render(t *testing.T, schema, sql string) string {
	t.Helper()
	names, err := sqlname.New(schema, "", '"')
	require.NoError(t, err)
	return names.Render(sql)
}

// connect returns a connection that prepares nothing of its own accord.
func connect(t *testing.T, server pgtest.Server) *pgx.Conn {
	t.Helper()
	config, err := pgx.ParseConfig(server.URL())
	require.NoError(t, err)
	config.DefaultQueryExecMode = pgx.QueryExecModeExec
	db, err := pgx.ConnectConfig(t.Context(), config)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, db.Close(context.Background())) })
	return db
}

func exec(t *testing.T, db *pgx.Conn, sql string, args ...any) int64 {
	t.Helper()
	tag, err := db.Exec(t.Context(), sql, args...)
	require.NoError(t, err, sql)
	return tag.RowsAffected()
}
