package migrations

import (
	"cmp"
	"embed"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/pressly/goose/v3"

	"github.com/watermill-outbox/outbox/internal/sqlname"
)

// A dialect is what differs between databases. Its folder has the migrations as NNNN_name.sql, which run as they are
// under goose and under the database's own shell, and version.sql, which makes the version table.
type dialect struct {
	database string   // what users call it
	drivers  []string // the names its drivers are registered under
	goose    goose.Dialect
	quote    byte
	schemas  bool
	folder   string
	// tableExists counts the tables of this name, which is given as outbox_....
	tableExists func(names sqlname.Names, table string) (query string, args []any)
	// busy are parts of errors that mean that others are at work and the same may succeed later. Matching text keeps
	// this package free of drivers.
	busy []string
}

//go:embed sqlite
var folders embed.FS

var dialects = []dialect{
	{
		database: "SQLite",
		drivers:  []string{"sqlite3", "sqlite"},
		goose:    goose.DialectSQLite3,
		quote:    '"',
		folder:   "sqlite",
		tableExists: func(names sqlname.Names, table string) (string, []any) {
			// Table names are compared as SQLite does it, without regard to case.
			return "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = ? COLLATE NOCASE",
				[]any{names.Unquoted(table)}
		},
		// "database is locked", "database table is locked", "locking protocol" (a race while WAL is set up).
		busy: []string{"is locked", "locking protocol"},
	},
}

func dialectOf(driverName string) (dialect, error) {
	var known []string
	for _, d := range dialects {
		if slices.Contains(d.drivers, driverName) {
			return d, nil
		}
		for _, name := range d.drivers {
			known = append(known, fmt.Sprintf("%q", name))
		}
	}
	return dialect{}, fmt.Errorf("outbox: no migrations for the driver %q: this release has them for %s",
		driverName, strings.Join(known, ", "))
}

func (d dialect) isBusy(err error) bool {
	return slices.ContainsFunc(d.busy, func(part string) bool { return strings.Contains(err.Error(), part) })
}

// A schema is one outbox: what leads to its tables, and what they are called. It knows no database.
type schema struct {
	dialect dialect
	names   sqlname.Names
	files   fs.FS // the dialect's folder, with the names put in
}

func newSchema(driverName string, opts []Option) (schema, error) {
	d, err := dialectOf(driverName)
	if err != nil {
		return schema{}, err
	}
	var o options
	for _, opt := range opts {
		opt(&o)
	}
	names, err := sqlname.New(o.schema, o.prefix, d.quote)
	if err != nil {
		return schema{}, err
	}
	if o.schema != "" && !d.schemas {
		return schema{}, fmt.Errorf("outbox: %s has no schemas: leave out WithSchema(%q); WithPrefix keeps several "+
			"outboxes in one database apart", d.database, o.schema)
	}
	folder, err := fs.Sub(folders, d.folder)
	if err != nil {
		return schema{}, fmt.Errorf("outbox: migrations of %s: %w", d.database, err)
	}
	return schema{dialect: d, names: names, files: renderedFS{files: folder, names: names}}, nil
}

// A migration is a file of the dialect's folder whose name begins with a number.
type migration struct {
	version int64
	file    string
}

// migrations are in ascending order.
func (s schema) migrations() ([]migration, error) {
	files, err := fs.Glob(s.files, "*.sql")
	if err != nil {
		return nil, err
	}
	var all []migration
	for _, file := range files {
		// goose takes the same files, by the same function.
		if version, err := goose.NumericComponent(file); err == nil {
			all = append(all, migration{version: version, file: file})
		}
	}
	slices.SortFunc(all, func(a, b migration) int { return cmp.Compare(a.version, b.version) })
	return all, nil
}

func (s schema) latest() (int64, error) {
	all, err := s.migrations()
	if err != nil || len(all) == 0 {
		return 0, err
	}
	return all[len(all)-1].version, nil
}
