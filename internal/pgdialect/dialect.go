// Package pgdialect is what the stores on PostgreSQL have in common: the statements, and what they take and return. It
// knows no driver.
//
// Statements call each operator and function with exactly the types that pg_catalog has it for, by casts where there is need,
// or name pg_catalog. PostgreSQL would take an exact match from any schema of the search_path before one to whose types it has
// to convert, and so would call what somebody else has put there, with the rights of the relay.
package pgdialect

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"time"

	"github.com/watermill-outbox/outbox/internal/sqlstore"
)

//go:embed queries/*.sql
var queryFiles embed.FS

// DefaultSchema is where the tables are unless an option says otherwise, whatever the search_path: names are always
// qualified.
const DefaultSchema = "public"

// New returns the dialect of the store called name. batch makes arguments of arrays, as the driver takes them.
func New(name string, batch func(columns ...any) []any, options sqlstore.Options) (sqlstore.Dialect, error) {
	queries, err := fs.Sub(queryFiles, "queries")
	if err != nil {
		return sqlstore.Dialect{}, fmt.Errorf("%s: %w", name, err)
	}
	channel := ""
	if !options.NoNotify {
		sum := sha256.Sum256([]byte(options.Schema + "." + options.Prefix))
		channel = "outbox_" + hex.EncodeToString(sum[:8]) // the names may be longer than a channel's
	}
	return sqlstore.Dialect{
		Name:      name,
		Quote:     '"',
		MaxRows:   100_000,
		Queries:   queries,
		IsMissing: isMissing,
		Time: sqlstore.Times{
			ToColumn:   func(t time.Time) any { return t },
			FromColumn: timeFrom,
		},
		Batch:   batch,
		Late:    true,
		Arrays:  true,
		Channel: channel,
		Slots:   64,
	}, nil
}

func timeFrom(v any) (time.Time, error) {
	t, ok := v.(time.Time)
	if !ok {
		return time.Time{}, fmt.Errorf("a time is %v", v) // infinity
	}
	return t, nil
}

// isMissing goes by the SQLSTATE of undefined tables, columns and schemas.
func isMissing(err error) bool {
	switch sqlstore.SQLState(err) {
	case "42P01", "42703", "3F000":
		return true
	}
	return false
}
