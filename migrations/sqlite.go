package migrations

import (
	"slices"
	"strings"

	"github.com/pressly/goose/v3"

	"github.com/watermill-outbox/outbox/internal/sqlname"
)

var sqlite = dialect{
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
	// Only a write locks others out.
	lock: "DELETE FROM outbox_version WHERE version_id = 0",
	isBusy: func(err error) bool {
		// "database is locked", "database table is locked", "locking protocol" (a race while WAL is set up).
		return slices.ContainsFunc([]string{"is locked", "locking protocol"},
			func(part string) bool { return strings.Contains(err.Error(), part) })
	},
	advice: func(error) string { return "" },
}
