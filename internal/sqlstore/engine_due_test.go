package sqlstore

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// relayAll relays until nothing has come for a while, and returns the ids.
func relayAll(t *testing.T, e *Engine) (ids []int64) {
	t.Helper()
	for idle := 0; idle < 10; idle++ {
		if more := relay(t, e, 1); len(more) > 0 {
			ids, idle = append(ids, more...), 0
		}
		time.Sleep(dueInterval)
	}
	return ids
}

// The second message of a key was delayed, and its time has come while the slot was another's. It is found among the delayed
// ones before catching up with the slot has come to the first.
func TestEngine_KeepsTheOrderOfADelayedMessage_WhenItCatchesUpWithItsSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := newTables(2)
		e := open(t, db)
		db.owners[1] = "other"
		for id := range int64(200) {
			db.commit(id+1, "a")
		}
		db.commit(201, "key")
		db.commit(202, "key")
		db.rows[202] = stored{slot: 1, key: "key", due: time.Now()}
		db.rows[203] = stored{key: "b"} // in the first slot
		db.last = 203
		time.Sleep(time.Second)
		require.Equal(t, []int64{203}, relay(t, e, 1000))
		time.Sleep(balanceInterval)
		db.owners[1] = "" // it is gained, and caught up with in pages of minRead
		ids := relayAll(t, e)
		require.Len(t, ids, 202)
		require.Less(t, slices.Index(ids, 201), slices.Index(ids, 202))
	})
}

// A large transaction commits after the delay of one of its messages, which is not the first of its key. What is late is read
// in pages, and what is delayed at once.
func TestEngine_KeepsTheOrderOfADelayedMessage_WhenItsTransactionCommitsLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := newTables(1)
		e := open(t, db)
		db.commit(300, "a")
		db.holders = []string{"late"}
		require.Equal(t, []int64{300}, relay(t, e, 1))
		for id := range int64(200) {
			db.commit(id+1, "a")
		}
		db.commit(201, "key")
		db.rows[202] = stored{key: "key", due: time.Now().Add(time.Second / 2)}
		db.holders = nil
		time.Sleep(time.Second)
		ids := relayAll(t, e)
		require.Len(t, ids, 202)
		require.Less(t, slices.Index(ids, 201), slices.Index(ids, 202))
	})
}
