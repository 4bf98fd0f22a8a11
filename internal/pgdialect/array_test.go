package pgdialect

import (
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/watermill-outbox/outbox/internal/pgtest"
)

// The server reads back what was written, whatever the strings and bytes are.
func TestTextArrays_AreReadAsTheyWere(t *testing.T) {
	conn, err := pgx.Connect(t.Context(), pgtest.V15.URL())
	require.NoError(t, err)
	defer conn.Close(t.Context()) //nolint:errcheck // it was only read
	rapid.Check(t, func(rt *rapid.T) {
		text := rapid.OneOf(rapid.StringOf(rapid.SampledFrom([]rune("\"\\{},' \n\x01aé\u2028😀"))),
			rapid.SampledFrom([]string{"NULL", "null", `\x00`, " a "}))
		strs := rapid.SliceOfN(text, 0, 5).Draw(rt, "texts")
		blobs := rapid.SliceOfN(rapid.SliceOfN(rapid.Byte(), 0, 10), 0, 5).Draw(rt, "bytes")
		ints := rapid.SliceOfN(rapid.Int64(), 0, 5).Draw(rt, "integers")
		var gotStrs []string
		var gotBlobs [][]byte
		var gotInts []int64
		err := conn.QueryRow(t.Context(), "SELECT $1::text::text[], $2::text::bytea[], $3::text::bigint[]",
			TextArrays(strs, blobs, ints)...).Scan(&gotStrs, &gotBlobs, &gotInts)
		if err != nil {
			rt.Fatal(err)
		}
		require.Equal(rt, strs, gotStrs)
		require.Equal(rt, blobs, gotBlobs)
		require.Equal(rt, ints, gotInts)
	})
}
