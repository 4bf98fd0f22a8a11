// Package sqlname puts a user's schema and prefix into SQL that names its tables outbox_..., and is the only place
// where anything of a user's becomes a part of a statement.
package sqlname

import (
	"fmt"
	"regexp"
	"strings"
)

// Names says what the tables are called.
type Names struct {
	schema string
	prefix string
	quote  byte
}

// MaxLength is the longest schema or prefix in bytes: with it the longest table name stays below PostgreSQL's 63.
const MaxLength = 30

var valid = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// New returns Names for tables <schema>.<prefix>outbox_..., with identifiers in quotes of the given kind. Either may be
// empty; otherwise it is letters, digits and underscores, and does not begin with a digit.
func New(schema, prefix string, quote byte) (Names, error) {
	for _, s := range []struct{ what, name string }{{"schema", schema}, {"prefix", prefix}} {
		if s.name == "" {
			continue
		}
		if !valid.MatchString(s.name) || len(s.name) > MaxLength {
			return Names{}, fmt.Errorf("outbox: the %s %q must be at most %d letters, digits and underscores, and not begin "+
				"with a digit", s.what, s.name, MaxLength)
		}
	}
	return Names{schema: schema, prefix: prefix, quote: quote}, nil
}

// Table returns the qualified and quoted name of a table, given as outbox_....
func (n Names) Table(name string) string {
	if n.schema == "" {
		return n.Bare(name)
	}
	return n.quoted(n.schema) + "." + n.Bare(name)
}

// Bare returns the quoted name of a table or an index without its schema.
func (n Names) Bare(name string) string { return n.quoted(n.prefix + name) }

// Unquoted returns the name of a table as catalogues have it.
func (n Names) Unquoted(name string) string { return n.prefix + name }

func (n Names) quoted(name string) string { return string(n.quote) + name + string(n.quote) }

var (
	// A word that begins with outbox_, not within another word or a string, and not in quotes already: what was rendered
	// may be rendered again and stays as it is.
	names = regexp.MustCompile("(?:^|[^A-Za-z0-9_'\"`.])outbox_[a-z_]+\\b")
	// Databases keep an index in the schema of its table and take no other name for it.
	indexSuffix = "_idx"
)

// Render returns sql with the names of tables and indexes (which end in _idx) replaced by those of n.
func (n Names) Render(sql string) string {
	return names.ReplaceAllStringFunc(sql, func(match string) string {
		at := strings.Index(match, "outbox_")
		before, name := match[:at], match[at:]
		if strings.HasSuffix(name, indexSuffix) {
			return before + n.Bare(name)
		}
		return before + n.Table(name)
	})
}
