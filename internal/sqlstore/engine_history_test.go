package sqlstore

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// What catching up shows may be of another history, though there is nothing else to read: of one in which something comes
// before it that the catching up has passed.
func TestEngine_KeepsOrder_WhenTheTableIsTruncatedWhileItCatchesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := newTables(2)
		e := open(t, db)
		db.owners[1] = "other"
		for id := range int64(200) {
			db.commit(id+1, "a")
		}
		db.rows[201] = stored{key: "b"} // in the first slot
		db.last = 201
		require.Equal(t, []int64{201}, relay(t, e, 1000))
		time.Sleep(balanceInterval)
		db.owners[1] = "" // it is gained, and caught up with in pages of minRead
		var ids []int64
		for len(ids) < minRead {
			ids = append(ids, relay(t, e, 1)...)
		}
		clear(db.rows)
		db.last, db.history = 0, "2"
		db.commit(minRead-4, "new")
		db.commit(minRead+6, "new")
		ids = nil
		for start := time.Now(); time.Since(start) < 3*e.ttl; time.Sleep(100 * time.Millisecond) {
			if msgs, err := e.Claim(t.Context(), 1, 1<<20); err == nil && len(msgs) > 0 {
				id, _ := rowID(msgs[0].ID)
				ids = append(ids, id)
				require.NoError(t, e.Release(t.Context(), msgs[0].ID))
			}
		}
		require.Equal(t, int64(minRead-4), ids[0])
	})
}
