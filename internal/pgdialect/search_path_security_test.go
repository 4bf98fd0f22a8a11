package pgdialect_test

import (
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox/internal/pgtest"
)

var call = regexp.MustCompile(`\b([a-z_]+)\(`)

// functions are the names of all that the statements and the migrations call, and of some that they do not.
func functions(t *testing.T) (names []string) {
	t.Helper()
	for _, folder := range []string{"queries", "../../migrations/postgres"} {
		files := os.DirFS(folder)
		found, err := fs.Glob(files, "*.sql")
		require.NoError(t, err)
		require.NotEmpty(t, found)
		for _, file := range found {
			text, err := fs.ReadFile(files, file)
			require.NoError(t, err)
			for _, match := range call.FindAllStringSubmatch(string(text), -1) {
				names = append(names, match[1])
			}
		}
	}
	names = append(names, "count", "max", "to_regclass", "pg_notify") // of statements that are not in files
	slices.Sort(names)
	return slices.Compact(names)
}

// hostileSchema has operators and functions that nobody shall call, by the names of those that the statements use.
func hostileSchema(t *testing.T, server pgtest.Server) string {
	t.Helper()
	statement, err := os.ReadFile("testdata/hostile.sql")
	require.NoError(t, err)
	schema := pgtest.Schema(t, server)
	pgtest.Exec(t, server, strings.NewReplacer(
		"hostile.", schema+".", "{functions}", "{"+strings.Join(functions(t), ",")+"}",
	).Replace(string(statement)))
	return schema
}

// Invariant: whoever can create objects in a schema of the search_path gets no rights of those who migrate, publish, relay,
// handle or inspect: they use what is in pg_catalog, since it has the exact types.
func TestSearchPath_HasNothingThatStatementsCall(t *testing.T) {
	t.Parallel()
	for _, server := range []pgtest.Server{pgtest.V15, pgtest.V18} {
		hostile := hostileSchema(t, server)
		for kind := range clients {
			t.Run(server.Name+"/"+kind, func(t *testing.T) {
				t.Parallel()
				p := &page{server: server, schema: pgtest.Schema(t, server), open: clients[kind], hears: kind == "pgxstore"}
				store, end := p.at(t, server.URL()+"?search_path="+hostile)
				defer end()
				for _, task := range tasks {
					if task.name != "listen" || p.hears {
						require.NoError(t, task.run(t, p, store), task.name)
					}
				}
				p.checkBadSequence(t, store)
			})
		}
	}
}

// checkBadSequence has the store tell what is wrong with a sequence, by functions that it has no other use for.
func (p *page) checkBadSequence(t *testing.T, store client) {
	t.Helper()
	sequence := "ALTER SEQUENCE " + p.schema + ".outbox_messages_id_seq "
	pgtest.Exec(t, p.server, sequence+"CACHE 2")
	require.ErrorContains(t, store.CheckSchema(t.Context()), "CACHE 2")
	pgtest.Exec(t, p.server, sequence+"CACHE 1")
	pgtest.Exec(t, p.server, sequence+"RENAME TO ids")
	require.ErrorContains(t, store.CheckSchema(t.Context()), "its sequence is")
}
