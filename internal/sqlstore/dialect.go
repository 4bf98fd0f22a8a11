// Package sqlstore is the engine of the stores on SQL databases: saving, leases, claims, marks, inspection, and the
// record of handled messages. What differs between databases is a [Dialect] and its .sql files; what differs between
// drivers is a [DB].
package sqlstore

import (
	"context"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/watermill-outbox/outbox/internal/sqlname"
)

// Dialect is what differs between databases.
type Dialect struct {
	// Name is how errors call the store: "sqlite".
	Name string
	// Quote is the byte around identifiers.
	Quote byte
	// MaxRows is how many rows one INSERT may have.
	MaxRows int
	// Queries holds the statements, one in each <name>.sql, in the dialect's own placeholders. queryNames lists them;
	// their parameters and columns are told where they are used.
	Queries fs.FS
	// IsMissing tells whether err means that a table or a column does not exist.
	IsMissing func(err error) bool
	// TxIsGone tells, after an error in a user's transaction, whether that has ended the transaction without the driver's
	// knowledge, so that what follows would commit by itself. It is nil for databases that do no such thing.
	TxIsGone func(ctx context.Context, tx Conn) bool
	// Time converts times.
	Time Times
	// Batch turns columns, each a []int64, []string or [][]byte and all of one length, into the arguments of a statement that is
	// run once for all their rows.
	Batch func(columns ...any) []any
	// Late is set where ids are taken before the commit, so that lower ones may appear later. Such a dialect has the
	// statements of lateNames, too.
	Late bool
	// Arrays is set where Batch makes an argument of each column, and an INSERT of many rows takes them, as does a statement
	// that settles all kinds of outcomes.
	Arrays bool
	// Channel is where an INSERT notifies relays that listen, by pg_notify; empty for none.
	Channel string
	// Slots is how many there are, up to 64. With more than one, reads take the slots of this instance as their last argument,
	// as the bits of an integer, and give no payload of others.
	Slots int
}

// Times converts between Go's times and the dialect's columns.
type Times struct {
	// ToColumn converts a time to an argument.
	ToColumn func(time.Time) any
	// FromColumn converts what a column holds.
	FromColumn func(any) (time.Time, error)
}

// Millis are times kept as integers, in milliseconds since 1970.
func Millis() Times {
	return Times{
		ToColumn: func(t time.Time) any { return t.UnixMilli() },
		FromColumn: func(v any) (time.Time, error) {
			ms, ok := v.(int64)
			if !ok {
				return time.Time{}, fmt.Errorf("a time is %T, not an integer", v)
			}
			return time.UnixMilli(ms), nil
		},
	}
}

// queryNames are the statements that every dialect has.
var queryNames = []string{
	"check", "insert", "read", "read_ids", "read_due", "sweep",
	"slots_list", "slots_take", "slots_renew", "slots_give", "slots_leave",
	"delete",
	"archive_purge", "failed_list", "failed_count", "failed_requeue", "failed_delete", "stats", "stats_topics",
	"processed_get", "processed_mark", "processed_purge",
}

// queries are a dialect's statements with the table names put in, by name.
type queries map[string]string

// lateNames are those of a dialect with Late, slotNames with Slots, arrayNames with Arrays, and rowNames of one without.
var (
	lateNames  = []string{"last_value", "read_settings", "read_runs", "server", "holders", "check_sequence", "check_settings", "check_values"}
	slotNames  = []string{"relay_appear", "relay_beat", "relay_leave"}
	arrayNames = []string{"insert_many", "settle"}
	rowNames   = []string{"archive", "retry"}
)

// notifying is the end of the name of a statement that notifies, too.
const notifying = "_notifying"

func (d *Dialect) render(names sqlname.Names) (queries, error) {
	q, files := queries{}, slices.Clone(queryNames)
	for _, more := range []struct {
		has   bool
		names []string
	}{{d.Late, lateNames}, {d.Slots > 1, slotNames}, {d.Arrays, arrayNames}, {!d.Arrays, rowNames}} {
		if more.has {
			files = append(files, more.names...)
		}
	}
	for _, name := range files {
		text, err := fs.ReadFile(d.Queries, name+".sql")
		if err != nil {
			return nil, fmt.Errorf("outbox: dialect %s: %w", d.Name, err)
		}
		q[name] = names.Render(strings.TrimRight(string(text), "; \n"))
	}
	if d.Channel != "" {
		for _, name := range []string{"insert", "insert_many"} { // of six parameters each
			q[name+notifying] = "WITH saved AS (\n" + q[name] + "\n)\nSELECT pg_notify($7::text, '')"
		}
	}
	return q, nil
}

// repeatRow makes a one-row INSERT ... VALUES (...) into one of n rows.
func repeatRow(insert string, n int) string {
	const values = "VALUES"
	at := strings.LastIndex(insert, values) + len(values)
	row := strings.TrimSpace(insert[at:])
	var b strings.Builder
	b.Grow(at + n*(len(row)+2))
	b.WriteString(insert[:at])
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteByte(' ')
		b.WriteString(row)
	}
	return b.String()
}
