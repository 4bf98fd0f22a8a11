package sqlstore

import (
	"database/sql"
	"math"
	"testing"

	_ "github.com/mattn/go-sqlite3"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// SQLite reads back what was written. A text that JSON cannot hold becomes null.
func TestJSONBatch_IsReadAsItWas(t *testing.T) {
	db, err := sql.Open("sqlite3", ":memory:")
	require.NoError(t, err)
	defer db.Close() //nolint:errcheck // it is in memory
	rapid.Check(t, func(rt *rapid.T) {
		ids := rapid.SliceOfNDistinct(rapid.Int64(), 1, 4, rapid.ID).Draw(rt, "ids")
		texts := rapid.SliceOfN(rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{"", `"`, `\`, "\x00", "\xff", "é\u2028"})),
			len(ids), len(ids)).Draw(rt, "texts")
		for i, id := range ids {
			want := sql.NullString{String: texts[i], Valid: isUTF8(map[string]string{"": texts[i]})}
			for what, query := range map[string]string{
				"one column":    "SELECT value FROM json_each(?1) WHERE key = ?2",
				"two columns":   "SELECT CAST(key AS INTEGER) FROM json_each(?1) WHERE CAST(key AS INTEGER) = ?3",
				"three columns": "SELECT value ->> 0 FROM json_each(?1) WHERE key = ?2",
			} {
				columns := map[string][]any{
					"one column": {ids}, "two columns": {ids, texts}, "three columns": {ids, texts, ids},
				}[what]
				var got int64
				err := db.QueryRow(query, JSONBatch(columns...)[0], i, id).Scan(&got)
				if err != nil || got != id {
					rt.Fatalf("%s: id %d came back as %d: %v", what, id, got, err)
				}
			}
			var two, three sql.NullString
			require.NoError(rt, db.QueryRow("SELECT value FROM json_each(?1) WHERE CAST(key AS INTEGER) = ?2",
				JSONBatch(ids, texts)[0], id).Scan(&two))
			require.NoError(rt, db.QueryRow("SELECT value ->> 1 FROM json_each(?1) WHERE key = ?2",
				JSONBatch(ids, texts, ids)[0], i).Scan(&three))
			if want.Valid {
				require.Equal(rt, want, two)
				require.Equal(rt, want, three)
			} else {
				require.False(rt, two.Valid || three.Valid)
			}
		}
	})
}

func TestJSONBatch_OfNothing(t *testing.T) {
	require.Equal(t, []any{"[]"}, JSONBatch([]int64{}))
	require.Equal(t, []any{"{}"}, JSONBatch([]int64{}, []string{}))
	require.Equal(t, []any{"[]"}, JSONBatch([]int64{}, []string{}, []string{}))
	require.Equal(t, []any{"[9223372036854775807]"}, JSONBatch([]int64{math.MaxInt64}))
}
