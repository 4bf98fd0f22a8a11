package sqlname_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox/internal/sqlname"
)

func TestNew_TakesPlainIdentifiersOnly(t *testing.T) {
	longest := strings.Repeat("a", sqlname.MaxLength)
	for name, ok := range map[string]bool{
		"": true, "a": true, "_": true, "Billing_2": true, "SELECT": true, longest: true,
		longest + "a": false, "1a": false, "a b": false, " ": false, "a-b": false, "a.b": false, "a;b": false, "a'b": false,
		`a"b`: false, "a`b": false, "[a]": false, "a\\b": false, "a\nb": false, "a\n": false, "a\x00": false, "a%s": false,
		"$1": false, "é": false, "ａ": false, "a\xff": false, `x"; DROP TABLE outbox_messages; --`: false,
	} {
		_, err := sqlname.New(name, "", '"')
		assert.Equal(t, ok, err == nil, "schema %q: %v", name, err)
		_, err = sqlname.New("", name, '"')
		assert.Equal(t, ok, err == nil, "prefix %q: %v", name, err)
		if !ok {
			require.ErrorContains(t, err, "prefix")
			require.ErrorContains(t, err, "at most 30 letters, digits and underscores")
		}
	}
}

func TestNames_QualifyAndQuote(t *testing.T) {
	for _, c := range []struct {
		schema, prefix        string
		quote                 byte
		table, bare, unquoted string
	}{
		{"", "", '"', `"outbox_slots"`, `"outbox_slots"`, "outbox_slots"},
		{"", "app_", '"', `"app_outbox_slots"`, `"app_outbox_slots"`, "app_outbox_slots"},
		{"sales", "", '"', `"sales"."outbox_slots"`, `"outbox_slots"`, "outbox_slots"},
		{"sales", "app_", '`', "`sales`.`app_outbox_slots`", "`app_outbox_slots`", "app_outbox_slots"},
	} {
		names, err := sqlname.New(c.schema, c.prefix, c.quote)
		require.NoError(t, err)
		assert.Equal(t, c.table, names.Table("outbox_slots"))
		assert.Equal(t, c.bare, names.Bare("outbox_slots"))
		assert.Equal(t, c.unquoted, names.Unquoted("outbox_slots"))
	}
}

func TestRender_ReplacesNamesOfTablesAndIndexes_AndNothingElse(t *testing.T) {
	names, err := sqlname.New("s", "p_", '"')
	require.NoError(t, err)
	for sql, want := range map[string]string{
		"":                               "",
		"outbox_slots":                   `"s"."p_outbox_slots"`,
		"SELECT 1 FROM outbox_slots;":    `SELECT 1 FROM "s"."p_outbox_slots";`,
		"(outbox_slots,outbox_messages)": `("s"."p_outbox_slots","s"."p_outbox_messages")`,
		"outbox_slots outbox_relays":     `"s"."p_outbox_slots" "s"."p_outbox_relays"`,
		"outbox_slots.slot":              `"s"."p_outbox_slots".slot`,
		"CREATE INDEX outbox_a_idx ON\noutbox_a (b)": "CREATE INDEX \"p_outbox_a_idx\" ON\n\"s\".\"p_outbox_a\" (b)",

		"'outbox_slots'":   "'outbox_slots'",
		`"outbox_slots"`:   `"outbox_slots"`,
		"`outbox_slots`":   "`outbox_slots`",
		"main.outbox_a":    "main.outbox_a",
		"my_outbox_slots":  "my_outbox_slots",
		"my1outbox_slots":  "my1outbox_slots",
		"outbox_slots2":    "outbox_slots2",
		"outbox_slotsById": "outbox_slotsById",
		"outbox_":          "outbox_",
		"outbox":           "outbox",
		"OUTBOX_SLOTS":     "OUTBOX_SLOTS",
	} {
		assert.Equal(t, want, names.Render(sql), sql)
	}
}

func TestRender_OfWhatWasRendered_ChangesNothing(t *testing.T) {
	for _, quote := range []byte{'"', '`'} {
		names, err := sqlname.New("", "", quote)
		require.NoError(t, err)
		once := names.Render("INSERT INTO outbox_archive SELECT * FROM outbox_messages")
		assert.Equal(t, once, names.Render(once))
		assert.Equal(t, 4, strings.Count(once, string(quote)))
	}
}

// Whatever New accepts cannot leave its quotes, and rendering twice is rendering once.
func FuzzNew(f *testing.F) {
	for _, seed := range []struct{ schema, prefix, sql string }{
		{"", "", "SELECT id FROM outbox_messages WHERE topic = 'outbox_slots'"},
		{"public", "billing_", "CREATE INDEX outbox_messages_due_idx ON outbox_messages (available_at, id)"},
		{"outbox_a", "outbox_b_idx", "outbox_messages,outbox_slots\toutbox_archive"},
		{`a"b`, "a`b", `"outbox_messages"`},
		{"1a", "a;b", "`outbox_messages`-outbox_slots"},
		{"a b", strings.Repeat("a", 31), "éoutbox_aé \xffoutbox_b\xff"},
		{"\n", "a\n", "outbox_a2 outbox_A .outbox_c_idx_idx"},
	} {
		f.Add(seed.schema, seed.prefix, seed.sql, true)
		f.Add(seed.schema, seed.prefix, seed.sql, false)
	}
	f.Fuzz(func(t *testing.T, schema, prefix, sql string, backtick bool) {
		quote := byte('"')
		if backtick {
			quote = '`'
		}
		names, err := sqlname.New(schema, prefix, quote)
		if err != nil {
			return
		}
		const table = "outbox_messages"
		q := string(quote)
		want := q + prefix + table + q
		assertOnlyQuotes(t, names.Bare(table), q, 2)
		if names.Bare(table) != want {
			t.Errorf("Bare is %s, want %s", names.Bare(table), want)
		}
		if schema != "" {
			want = q + schema + q + "." + want
		}
		assertOnlyQuotes(t, strings.Replace(names.Table(table), q+"."+q, "", 1), q, 2)
		if names.Table(table) != want {
			t.Errorf("Table is %s, want %s", names.Table(table), want)
		}
		once := names.Render(sql)
		if twice := names.Render(once); twice != once {
			t.Errorf("rendered once: %q\ntwice: %q", once, twice)
		}
	})
}

// assertOnlyQuotes checks that name is made of letters, digits, underscores, and n of the quotes.
func assertOnlyQuotes(t *testing.T, name, quote string, n int) {
	t.Helper()
	odd := strings.Map(func(r rune) rune {
		if r == '_' || r >= '0' && r <= '9' || r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z' {
			return -1
		}
		return r
	}, name)
	if odd != strings.Repeat(quote, n) {
		t.Errorf("%s has %q besides letters, digits and underscores", name, odd)
	}
}
