package claim

import (
	"math"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestRowID_IsThatOfEveryIDThatIsGiven(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		row, generation := rapid.Int64().Draw(t, "row"), rapid.IntMin(0).Draw(t, "generation")
		id := WithGeneration(strconv.FormatInt(row, 10), generation)
		got, err := RowID(id)
		require.NoError(t, err, id)
		require.Equal(t, row, got)
		require.Equal(t, generation, Generation(id))
	})
}

// What a user has made up, or has cut wrong, is the id of no message.
func TestRowID_RefusesWhatNobodyGave(t *testing.T) {
	for _, id := range []string{
		"", ".", ".1", "1.", "1..2", "1.2.3", "1.5x", "1.DROP", "1x", "x", "1.+5", "1.-5", "1. 5", "1.5 ",
		"+1", "-", "--1", "+-1", "-x", " 1", "1 ", "1\n", "0x1", "1e0", "1_0", "1,5", "\u0661", "1.\u0661",
		"1.9999999999999999999999", "9999999999999999999999", strconv.FormatUint(math.MaxInt64+1, 10),
	} {
		_, err := RowID(id)
		require.Error(t, err, "%q", id)
	}
}
