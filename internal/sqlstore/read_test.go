package sqlstore

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// A poll that finds nothing is most of what an outbox costs that has little to do.
func TestEngine_AsksForTheLastValueOnly_WhenThereIsNothingNew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := newTables(1)
		e := open(t, db)
		db.commit(1, "a")
		require.Equal(t, []int64{1}, relay(t, e, 1))
		require.Empty(t, relay(t, e, 1))
		time.Sleep(time.Millisecond) // neither delayed messages nor the server are looked at again so soon
		var asked []string
		db.before = func(query string) error {
			asked = append(asked, query)
			return nil
		}
		require.Empty(t, relay(t, e, 1))
		require.Equal(t, []string{"last_value"}, asked)
		db.commit(2, "a")
		require.Equal(t, []int64{2}, relay(t, e, 1))
	})
}

// A row was inserted by hand, with an id that the sequence has not come to.
func TestEngine_FindsAnIDAboveTheSequence_WhenItNextLooksAtTheServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := newTables(1)
		e := open(t, db)
		db.commit(1, "a")
		require.Equal(t, []int64{1}, relay(t, e, 1))
		require.Empty(t, relay(t, e, 1))
		db.rows[1000] = stored{key: "a"}
		time.Sleep(lookInterval)
		require.Equal(t, []int64{1000}, relay(t, e, 1))
	})
}
