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
	folder   string
	// defaultSchema is where the tables are without WithSchema, as it is for the stores, whatever the settings of a
	// connection are. Empty where the database has no schemas.
	defaultSchema string
	// tableExists counts the tables of this name, which is given as outbox_....
	tableExists func(names sqlname.Names, table string) (query string, args []any)
	// lockTimeout begins each transaction, where the database needs to be told how long to wait for a lock.
	lockTimeout string
	// lock keeps other migrations from the version table until the transaction ends. It may delete version 0.
	lock string
	// isBusy tells an error that means that others are at work and the same may succeed later. Neither it nor advice
	// knows the types of drivers, which keeps this package free of them.
	isBusy func(err error) bool
	// advice returns what a user can do about an error, or nothing.
	advice func(err error) string
}

//go:embed postgres sqlite
var folders embed.FS

var dialects = []dialect{sqlite, postgres}

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

// advise adds what to do about err where there is something.
func (d dialect) advise(err error) error {
	if advice := d.advice(err); advice != "" {
		return fmt.Errorf("%s: %w", advice, err)
	}
	return err
}

// A schema is one outbox: what leads to its tables, and what they are called. It knows no database.
type schema struct {
	dialect dialect
	names   sqlname.Names
	files   renderedFS // the dialect's folder, with the names put in
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
	names, err := sqlname.New(cmp.Or(o.schema, d.defaultSchema), o.prefix, d.quote)
	if err != nil {
		return schema{}, err
	}
	if o.schema != "" && d.defaultSchema == "" {
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
