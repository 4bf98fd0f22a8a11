package sqlstore

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/internal/claim"
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
				id, _ := claim.RowID(msgs[0].ID)
				ids = append(ids, id)
				require.NoError(t, e.Release(t.Context(), msgs[0].ID))
			}
		}
		require.Equal(t, int64(minRead-4), ids[0])
	})
}

// While PostgreSQL logs a sequence, its last value is that of 32 calls later: nobody has taken those ids.
func TestEngine_PublishesOn_WhenALookWasWhileTheSequenceIsLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := newTables(1)
		e := open(t, db)
		var ids, committed []int64
		for id := range int64(200) {
			db.logged = 0
			if id%5 == 0 {
				db.logged = loggedAhead
			}
			db.commit(id+1, "a")
			committed = append(committed, id+1)
			ids = append(ids, relay(t, e, 10)...)
			time.Sleep(lookInterval)
		}
		require.Equal(t, committed, ids)
	})
}

// The ids up to 32 above the last that was taken look as if everybody who has one had ended.
func TestEngine_PublishesWhatComesLate_WhenALookWasWhileTheSequenceIsLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := newTables(1)
		e := open(t, db)
		db.commit(1, "a")
		db.logged = loggedAhead
		ids := relay(t, e, 10)
		for range 3 { // idle: the last value is looked at, and nobody holds the sequence
			time.Sleep(lookInterval)
			ids = append(ids, relay(t, e, 10)...)
		}
		db.logged = 0
		db.holders = []string{"late"} // has 2
		db.commit(3, "a")
		ids = append(ids, relay(t, e, 10)...)
		db.commit(2, "a")
		db.holders = nil
		for range 3 {
			time.Sleep(lookInterval)
			ids = append(ids, relay(t, e, 10)...)
		}
		require.ElementsMatch(t, []int64{1, 2, 3}, ids)
	})
}

// A sequence is set back by fewer ids than its last value may be too high by. What gets an id that was read already would
// never be read.
func TestEngine_StartsOver_WhenASequenceIsSetBackByLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := newTables(1)
		e := open(t, db)
		for id := range int64(5) {
			db.commit(id+1, "a")
		}
		require.Len(t, relay(t, e, 10), 5)
		db.last = 2
		db.commit(3, "a")
		var ids []int64
		for start := time.Now(); time.Since(start) < 3*e.ttl; time.Sleep(100 * time.Millisecond) {
			msgs, err := e.Claim(t.Context(), 10, 1<<20)
			if errors.Is(err, outbox.ErrNoLease) {
				continue
			}
			require.NoError(t, err)
			ids = append(ids, settle(t, e, msgs)...)
		}
		require.Equal(t, []int64{3}, ids)
	})
}
