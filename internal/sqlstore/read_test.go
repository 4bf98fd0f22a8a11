package sqlstore

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
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

// asked notes what is asked of the tables, without what no fetch asks for.
func asked(db *tables) (take func() []string) {
	var all []string
	db.before = func(query string) error {
		if slices.Contains([]string{"last_value", "read", "read_runs", "server", "holders"}, query) {
			all = append(all, query)
		}
		return nil
	}
	return func() []string {
		defer func() { all = nil }()
		return all
	}
}

// A list of the holders costs more than the read.
func TestEngine_ListsNoHolders_WhereNoIDIsMissing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := newTables(1)
		e := open(t, db)
		db.commit(1, "a")
		require.Equal(t, []int64{1}, relay(t, e, 1))
		take := asked(db)
		for id := int64(2); id < 9; id++ {
			db.commit(id, "a")
			require.Equal(t, []int64{id}, relay(t, e, 1))
			require.Equal(t, []string{"read", "server"}, take())
		}

		db.holders = []string{"late"} // it has 9
		db.commit(10, "b")
		require.Equal(t, []int64{10}, relay(t, e, 1))
		require.Equal(t, []string{"read", "server", "holders"}, take())
		require.True(t, e.Expecting())
		db.commit(9, "a")
		db.holders = nil
		db.commit(11, "a")
		require.Equal(t, []int64{9, 11}, relay(t, e, 9))
	})
}

// Of a commit after which nothing is missing nobody may have told, and the signal of one that is yet to come may be left to it.
func TestEngine_KnowsSoonThatSomebodyIsExpected_WhereNoIDIsMissing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := newTables(1)
		e := open(t, db)
		db.commit(1, "a")
		require.Equal(t, []int64{1}, relay(t, e, 1))
		db.holders = []string{"late"} // it has 3
		db.commit(2, "a")
		require.Equal(t, []int64{2}, relay(t, e, 1))
		require.False(t, e.Expecting())
		time.Sleep(listInterval)
		require.Empty(t, relay(t, e, 1))
		require.True(t, e.Expecting())
		take := asked(db)
		time.Sleep(listInterval)
		require.Empty(t, relay(t, e, 1))
		require.Equal(t, []string{"last_value"}, take(), "nothing was read since")
	})
}

// Ids that follow upon those that were read say nothing where they are given again.
func TestEngine_ReadsNothingOfAnotherServer_ThoughNoIDIsMissing(t *testing.T) {
	for name, change := range map[string]func(db *tables){
		"promoted":        func(db *tables) { db.history = "2" },
		"set back":        func(db *tables) { db.last -= 2 * loggedAhead },
		"another cluster": func(db *tables) { db.cluster, db.started = "2", "now" },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				db := newTables(1)
				e := open(t, db)
				for id := int64(1); id < 100; id++ {
					db.commit(id, "a")
					require.Equal(t, []int64{id}, relay(t, e, 1))
				}
				db.commit(100, "a")
				change(db)
				take := asked(db)
				_, err := e.Claim(t.Context(), 1, 1<<20)
				require.ErrorIs(t, err, outbox.ErrNoLease)
				require.Contains(t, take(), "holders")
			})
		})
	}
}

// Whoever holds the sequence after a crash is another, though he may have the same name.
func TestEngine_ReadsAgainWhatWasMissing_WhenTheServerHasStartedAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := newTables(1)
		e := open(t, db)
		db.commit(1, "a")
		require.Equal(t, []int64{1}, relay(t, e, 1))
		db.holders = []string{"late"} // it has 2
		db.commit(3, "b")
		require.Equal(t, []int64{3}, relay(t, e, 1))
		require.Empty(t, relay(t, e, 1))
		db.commit(2, "a") // and then the server crashes
		db.started = "now"
		require.Equal(t, []int64{2}, relay(t, e, 1))
	})
}

// A server that has started at another time is looked at before anything of it counts.
func TestEngine_LooksAtAServerThatHasStartedAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := newTables(1)
		e := open(t, db)
		db.commit(1, "a")
		require.Equal(t, []int64{1}, relay(t, e, 1))
		db.commit(2, "a")
		db.started = "now"
		take := asked(db)
		require.Equal(t, []int64{2}, relay(t, e, 1))
		require.Contains(t, take(), "holders")
	})
}

func TestEngine_CatchesUp_WhileNewMessagesCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := newTables(2)
		e := open(t, db)
		db.owners[1] = "other"
		for id := range int64(200) {
			db.commit(id+1, "a") // in the second slot
		}
		db.commitIn(0, 201, "b")
		require.Equal(t, []int64{201}, relay(t, e, 1000))
		time.Sleep(balanceInterval)
		db.owners[1] = ""
		var ids []int64
		for id := int64(202); id < 450; id++ {
			db.commitIn(0, id, "b")
			ids = append(ids, relay(t, e, 2)...)
		}
		slices.Sort(ids)
		require.Equal(t, int64(1), ids[0])
		require.Len(t, slices.Compact(ids), 200+248)
	})
}

// TRUNCATE ... RESTART IDENTITY; then one message is delayed, and falls due before the one that was committed ahead of it is read.
func TestEngine_KeepsOrder_WhenDelayedMessagesAreReadOfAnotherHistory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := newTables(1)
		e := open(t, db)
		for id := int64(1); id < 100; id++ {
			db.commit(id, "a")
		}
		for range 5 {
			relay(t, e, 100)
		}
		clear(db.rows)
		db.last, db.history = 0, "2"
		db.commit(1, "a")
		db.rows[2], db.last = stored{key: "a", due: time.Now().Add(time.Millisecond)}, 2
		time.Sleep(dueInterval)
		_, err := e.Claim(t.Context(), 10, 1<<20)
		require.ErrorIs(t, err, outbox.ErrNoLease)
	})
}
