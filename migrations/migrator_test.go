package migrations

import (
	"context"
	"database/sql"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/watermill-outbox/outbox/internal/sqlname"
)

// withSteps returns a schema with other migrations, of which one comes after 2 by number and before it by name.
func withSteps(t *testing.T, extra map[string]string, driverName string, opts ...Option) schema {
	t.Helper()
	s, err := newSchema(driverName, opts)
	require.NoError(t, err)
	versionSQL, err := fs.ReadFile(s.files, "version.sql")
	require.NoError(t, err)
	files := fstest.MapFS{"version.sql": {Data: versionSQL}}
	for name, text := range map[string]string{
		"0001_one.sql": "-- +goose Up\nCREATE TABLE outbox_steps (n INTEGER);\n-- +goose Down\nDROP TABLE outbox_steps;\n",
		"2_two.sql": "-- kept nowhere\n-- +goose Up\n-- +goose StatementBegin\nINSERT INTO outbox_steps VALUES (2);\n" +
			"-- +goose StatementEnd\n-- +goose Down\nDELETE FROM outbox_steps WHERE n = 2;\n",
		"10_ten.sql": "-- +goose Up\n-- Ten.\nINSERT INTO outbox_steps VALUES (10);\n\n-- +goose Down\n" +
			"DELETE FROM outbox_steps WHERE n = 10;\n",
	} {
		files[name] = &fstest.MapFile{Data: []byte(text)}
	}
	for name, text := range extra {
		files[name] = &fstest.MapFile{Data: []byte(text)}
	}
	s.files = renderedFS{files: files, names: s.names}
	return s
}

func openFile(t *testing.T, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite3", dsn)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, db.Close()) })
	return db
}

func TestSQL_TakesTheStepsInTheOrderOfTheirNumbers(t *testing.T) {
	const (
		create   = "CREATE TABLE \"outbox_steps\" (n INTEGER);\n"
		drop     = "DROP TABLE \"outbox_steps\";\n"
		two, ten = "INSERT INTO \"outbox_steps\" VALUES (2);\n", "-- Ten.\nINSERT INTO \"outbox_steps\" VALUES (10);\n"
		notTwo   = "DELETE FROM \"outbox_steps\" WHERE n = 2;\n"
		notTen   = "DELETE FROM \"outbox_steps\" WHERE n = 10;\n"
	)
	s := withSteps(t, nil, "sqlite3")
	for _, way := range []struct {
		from, to int64
		want     []string
	}{
		{0, 1, []string{create}},
		{0, 10, []string{create, two, ten}},
		{1, 10, []string{two, ten}},
		{2, 10, []string{ten}},
		{2, 5, nil},
		{10, 0, []string{notTen, notTwo, drop}},
		{10, 2, []string{notTen}},
		{2, 1, []string{notTwo}},
		{1, 0, []string{drop}},
		{0, 0, nil},
		{10, 10, nil},
	} {
		got, err := s.sql(way.from, way.to)
		require.NoError(t, err)
		assert.Equal(t, strings.Join(way.want, "\n"), got, "%d to %d", way.from, way.to)
	}
	_, err := s.sql(0, 11)
	require.ErrorContains(t, err, "this release has 0 to 10")
}

// A migration that fills in data has no table that could exist already: only the version is in the loser's way.
func TestUp_AppliesDataOnce_WhenManyRunAtOnce(t *testing.T) {
	for _, options := range []string{"_busy_timeout=5000", "_txlock=immediate&_busy_timeout=5000&_journal_mode=WAL"} {
		for range 10 {
			s := withSteps(t, nil, "sqlite3")
			dsn := "file:" + filepath.Join(t.TempDir(), "outbox.db") + "?" + options
			start := make(chan struct{})
			var group errgroup.Group
			for range 8 {
				m := migrator{schema: s, db: openFile(t, dsn), patience: patience}
				group.Go(func() error {
					<-start
					return m.up(t.Context())
				})
			}
			close(start)
			require.NoError(t, group.Wait())

			var steps string
			require.NoError(t, openFile(t, dsn).QueryRowContext(t.Context(),
				"SELECT group_concat(n, ' ') FROM (SELECT n FROM outbox_steps ORDER BY n)").Scan(&steps))
			assert.Equal(t, "2 10", steps)
		}
	}
}

func TestUp_KeepsTheStepsBeforeOneThatFails(t *testing.T) {
	m := migrator{
		schema: withSteps(t, map[string]string{
			"11_bad.sql": "-- +goose Up\nINSERT INTO outbox_nowhere VALUES (1);\n",
		}, "sqlite3"),
		db:       openFile(t, "file:"+filepath.Join(t.TempDir(), "outbox.db")),
		patience: patience,
	}
	require.ErrorContains(t, m.up(t.Context()), "no such table: outbox_nowhere")
	version, err := m.version(t.Context())
	require.NoError(t, err)
	assert.EqualValues(t, 10, version)

	m.schema = withSteps(t, nil, "sqlite3")
	require.NoError(t, m.down(t.Context()))
	version, err = m.version(t.Context())
	require.NoError(t, err)
	assert.Equal(t, noVersionTable, version)
}

// locked returns a migrator whose database is locked by somebody else until unlock is called, and who calls onLook at
// each look for a table.
func locked(t *testing.T, onLook func(n int)) (m migrator, unlock func()) {
	t.Helper()
	dsn := "file:" + filepath.Join(t.TempDir(), "outbox.db")
	holder, err := openFile(t, dsn).Conn(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, holder.Close()) })
	_, err = holder.ExecContext(t.Context(), "BEGIN EXCLUSIVE")
	require.NoError(t, err)

	s, err := newSchema("sqlite3", nil)
	require.NoError(t, err)
	look, n := s.dialect.tableExists, 0
	s.dialect.tableExists = func(names sqlname.Names, table string) (string, []any) {
		n++
		onLook(n)
		return look(names, table)
	}
	return migrator{schema: s, db: openFile(t, dsn+"?_busy_timeout=1"), patience: patience}, func() {
		_, err := holder.ExecContext(t.Context(), "ROLLBACK")
		assert.NoError(t, err)
	}
}

func TestUp_WaitsWhileOthersLockTheDatabase(t *testing.T) {
	var (
		m      migrator
		unlock func()
	)
	m, unlock = locked(t, func(n int) {
		if n == 4 {
			unlock()
		}
	})
	require.NoError(t, m.up(t.Context()))
	version, err := m.version(t.Context())
	require.NoError(t, err)
	assert.EqualValues(t, 1, version)
}

func TestUp_StopsWaiting_WhenItsContextEnds(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	reason := fmt.Errorf("enough of %s", t.Name())
	m, unlock := locked(t, func(n int) {
		if n == 4 {
			cancel(reason)
		}
	})
	defer unlock()
	require.ErrorIs(t, m.up(ctx), reason)
}

func TestEveryDialect_HasItsFiles(t *testing.T) {
	for _, d := range dialects {
		for _, name := range d.drivers {
			s, err := newSchema(name, nil)
			require.NoError(t, err)
			all, err := s.migrations()
			require.NoError(t, err)
			for i, m := range all {
				assert.EqualValues(t, i+1, m.version, "%s: versions have no gaps, or goose would refuse what fills them", m.file)
				text, err := s.sql(m.version-1, m.version)
				require.NoError(t, err)
				assert.NotEmpty(t, strings.TrimSpace(text), "up of %s", m.file)
				text, err = s.sql(m.version, m.version-1)
				require.NoError(t, err)
				assert.NotEmpty(t, strings.TrimSpace(text), "down of %s", m.file)
				files := s.files
				files.first = "-- first\n"
				whole, err := fs.ReadFile(files, m.file)
				require.NoError(t, err)
				assert.Equal(t, 2, strings.Count(string(whole), files.first), "%s: goose's annotations stand alone", m.file)
			}
			_, err = fs.Stat(s.files, "version.sql")
			require.NoError(t, err)
		}
	}
}
