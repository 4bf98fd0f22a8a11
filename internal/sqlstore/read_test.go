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
		if slices.Contains([]string{"last_value", "read_first", "read", "read_runs", "holders"}, query) {
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
			require.Equal(t, []string{"read_first", "read"}, take())
		}

		db.holders = []string{"late"} // it has 9
		db.commit(10, "b")
		require.Equal(t, []int64{10}, relay(t, e, 1))
		require.Equal(t, []string{"read_first", "read", "holders"}, take())
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
	})
}

// Ids that follow upon those that were read say nothing where they are given again.
func TestEngine_ReadsNothingOfAnotherServer_ThoughNoIDIsMissing(t *testing.T) {
	for name, change := range map[string]func(db *tables){
		"promoted": func(db *tables) { db.history = "2" },
		"set back": func(db *tables) { db.last -= 2 * loggedAhead },
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
				_, err := e.Claim(t.Context(), 1, 1<<20)
				require.ErrorIs(t, err, outbox.ErrNoLease)
			})
		})
	}
}

// Ids may have been taken before a crash whose transactions were recovered, and are not settled.
func TestEngine_LooksForHolders_WhenTheServerHasStartedAnew(t *testing.T) {
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
