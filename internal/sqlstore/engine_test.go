package sqlstore

import (
	"context"
	"errors"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/internal/claim"
)

// tables are a simulated database for an engine: what is committed, and what a look at the server shows. Statements are
// called by their names.
type tables struct {
	mu      sync.Mutex
	rows    map[int64]stored
	last    int64    // of the sequence
	logged  int64    // by how much a look shows last too high
	holders []string // of it
	cluster string
	history string
	started string // when the server was
	// owners of the slots: "" is free, "other" another instance.
	owners []string
	// before is called ahead of each statement, and may fail it.
	before func(query string) error
	// slow is a statement that is run later than the others, whether its caller still waits or not.
	slow string
	late time.Duration
	ran  []string // statements, in the order in which they were run
	// there tells whether the engine is counted among the instances.
	there bool
}

type stored struct {
	slot int
	key  string
	due  any // nil is at once
}

// scanned is a row of a result.
type scanned []any

func (s scanned) Scan(dest ...any) error {
	for i, v := range s {
		if to := reflect.ValueOf(dest[i]).Elem(); v != nil {
			to.Set(reflect.ValueOf(v).Convert(to.Type()))
		} else {
			to.SetZero()
		}
	}
	return nil
}

func newTables(slots int) *tables {
	return &tables{
		rows: map[int64]stored{}, cluster: "1", history: "1", started: "then", owners: make([]string, slots), before: func(string) error { return nil },
	}
}

// commit inserts a row, and takes ids up to its own.
func (db *tables) commit(id int64, key string) {
	db.rows[id] = stored{key: key, slot: len(db.owners) - 1}
	db.last = max(db.last, id)
}

// commitIn is commit for a slot.
func (db *tables) commitIn(slot int, id int64, key string) {
	db.commit(id, key)
	db.rows[id] = stored{key: key, slot: slot}
}

// arrive has a statement run, unless it fails first.
func (db *tables) arrive(ctx context.Context, query string) error {
	if err := db.before(query); err != nil {
		return err
	}
	ran := make(chan struct{})
	run := func() {
		db.mu.Lock()
		defer db.mu.Unlock()
		db.ran = append(db.ran, query)
		close(ran)
	}
	db.mu.Lock()
	slow := query == db.slow
	db.mu.Unlock()
	if !slow {
		run()
		return nil
	}
	time.AfterFunc(db.late, run)
	select {
	case <-ran:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (db *tables) Query(ctx context.Context, query string, args []any, each func(Scanner) (bool, error)) error {
	if err := db.arrive(ctx, query); err != nil {
		return err
	}
	for _, row := range db.result(query, args) {
		if more, err := each(row); err != nil || !more {
			return err
		}
	}
	return nil
}

func (db *tables) result(query string, args []any) (result []scanned) {
	db.mu.Lock()
	defer db.mu.Unlock()
	switch query {
	case "read_settings":
	case "server":
		result = []scanned{{db.last + db.logged, db.history, db.started}}
	case "last_value":
		result = []scanned{{db.last + db.logged}}
	case "read":
		return db.read(args[2], func(id int64, _ stored) bool { return id > args[0].(int64) && id <= args[1].(int64) })
	case "read_ids":
		return db.read(args[1], func(id int64, _ stored) bool { return slices.Contains(args[0].([]int64), id) })
	case "read_runs":
		return db.read(args[2], func(id int64, _ stored) bool {
			at := slices.IndexFunc(args[1].([]int64), func(to int64) bool { return id <= to })
			return at >= 0 && args[0].([]int64)[at] <= id
		})
	case "read_due":
		after, to := args[0].(time.Time), args[2].(time.Time)
		return db.read(args[4], func(_ int64, r stored) bool {
			due, delayed := r.due.(time.Time)
			return delayed && due.After(after) && !due.After(to)
		})
	case "sweep":
		for _, id := range slices.Sorted(maps.Keys(db.rows)) {
			if r := db.rows[id]; id > args[0].(int64) && id <= args[1].(int64) && len(result) < args[2].(int) {
				result = append(result, scanned{id, r.slot, r.key, "t", int64(0), r.due})
			}
		}
	case "holders":
		for _, name := range db.holders {
			prepared := false
			result = append(result, scanned{db.last + db.logged, &name, &prepared, db.cluster, db.history, db.started, false})
		}
		if len(result) == 0 {
			result = []scanned{{db.last + db.logged, nil, nil, db.cluster, db.history, db.started, false}}
		}
	case "slots_list":
		for slot, owner := range db.owners {
			result = append(result, scanned{slot, owner, false, 1})
		}
	case "slots_take", "slots_renew":
		for _, slot := range args[2].([]int64) {
			db.owners[slot] = args[0].(string)
			result = append(result, scanned{int(slot), time.Now()})
		}
	default:
		panic(query)
	}
	return result
}

func (db *tables) read(limit any, shows func(id int64, r stored) bool) (result []scanned) {
	for _, id := range slices.Sorted(maps.Keys(db.rows)) {
		if r := db.rows[id]; shows(id, r) && len(result) < limit.(int) {
			result = append(result, scanned{
				id, r.slot, strconv.FormatInt(id, 10), "t", r.key, []byte{}, "{}", int64(0), r.due, "", time.Now(),
			})
		}
	}
	return result
}

func (db *tables) Exec(ctx context.Context, query string, args ...any) (int64, error) {
	if err := db.arrive(ctx, query); err != nil {
		return 0, err
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	switch query {
	case "delete":
		for _, id := range args[0].([]int64) {
			delete(db.rows, id)
		}
	case "relay_appear", "relay_leave":
		db.there = query == "relay_appear"
	case "relay_beat":
		if !db.there {
			return 0, nil
		}
	}
	return 1, nil
}

func (db *tables) Snapshot(ctx context.Context, first []Query, second func() ([]Query, error)) error {
	if err := db.before("snapshot"); err != nil {
		return err
	}
	for range 2 {
		for _, q := range first {
			if err := db.Query(ctx, q.SQL, q.Args, q.Each); err != nil {
				return err
			}
		}
		if second == nil {
			break
		}
		var err error
		if first, err = second(); err != nil {
			return err
		}
		second = nil
	}
	return nil
}

func (db *tables) Begin(context.Context) (Tx, error) { return nil, errors.ErrUnsupported }
func (db *tables) AsTx(any) (Conn, error)            { return nil, errors.ErrUnsupported }
func (db *tables) IsHandle(any) bool                 { return false }
func (db *tables) Close() error                      { return nil }

// open returns an engine over db, which has checked the schema.
func open(t *testing.T, db *tables) *Engine {
	t.Helper()
	statements := fstest.MapFS{}
	for _, name := range slices.Concat(queryNames, lateNames, slotNames, rowNames) {
		statements[name+".sql"] = &fstest.MapFile{Data: []byte(name)}
	}
	e, err := New(nil, db, Dialect{
		Name: "simulated", Quote: '"', MaxRows: 1, Queries: statements, Late: true, Slots: len(db.owners),
		IsMissing: func(error) bool { return false },
		Time: Times{
			ToColumn:   func(t time.Time) any { return t },
			FromColumn: func(v any) (time.Time, error) { return v.(time.Time), nil },
		},
		Batch: func(columns ...any) []any { return columns },
	}, Options{SweepInterval: time.Hour})
	require.NoError(t, err)
	e.checked = true
	t.Cleanup(func() { require.NoError(t, e.Close()) })
	return e
}

// relay claims up to limit messages and settles them, and returns their ids.
func relay(t *testing.T, e *Engine, limit int) []int64 {
	t.Helper()
	msgs, err := e.Claim(t.Context(), limit, 1<<20)
	require.NoError(t, err)
	return settle(t, e, msgs)
}

func settle(t *testing.T, e *Engine, msgs []outbox.Message) []int64 {
	t.Helper()
	ids, outcomes := make([]int64, len(msgs)), make([]outbox.Outcome, len(msgs))
	for i, m := range msgs {
		id, err := claim.RowID(m.ID)
		require.NoError(t, err)
		ids[i], outcomes[i] = id, outbox.Outcome{ID: m.ID, Status: outbox.StatusProcessed}
	}
	require.NoError(t, e.Settle(t.Context(), outcomes...))
	return ids
}

// A transaction has saved 5 and 9, of one key, and commits when the list of that key is to be read on from 8. That read
// would show 9 alone; and as long as the one that shows 5 fails, what is in memory goes out.
func TestEngine_KeepsTheOrderOfATransaction_WhenALongKeyIsReadOnBeforeWhatIsLate(t *testing.T) {
	db := newTables(1)
	e := open(t, db)
	e.queue = claim.New(1, 4, 1<<20) // a list of five loses its tail
	for _, id := range []int64{1, 2, 6, 7, 8} {
		db.commit(id, "long")
	}
	db.commit(10, "another")
	db.holders = []string{"late"}
	var ids []int64
	for range 4 {
		ids = append(ids, relay(t, e, 10)...)
	}
	require.ElementsMatch(t, []int64{1, 2, 6, 7, 10}, ids)

	db.commit(5, "long")
	db.commit(9, "long")
	db.holders = nil
	lost := errors.New("the connection is lost")
	db.before = func(query string) error {
		if query == "snapshot" {
			return lost
		}
		return nil
	}
	ids = nil
	for range 6 {
		msgs, err := e.Claim(t.Context(), 1, 1<<20)
		if err != nil {
			require.ErrorIs(t, err, lost)
			continue
		}
		ids = append(ids, settle(t, e, msgs)...)
	}
	db.before = func(string) error { return nil }
	for range 3 {
		ids = append(ids, relay(t, e, 1)...)
	}
	require.Equal(t, []int64{8, 5, 9}, ids)
}

// A message is committed while the delayed ones are read that have fallen due. It is due by now, and a moment later, when
// the read by id shows it, it is not, since the database's clock was set back. It is in neither read again.
func TestEngine_LosesNoDelayedMessage_WhenTheClockIsSetBackBetweenTwoReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := newTables(1)
		e := open(t, db)
		require.Empty(t, relay(t, e, 1))
		time.Sleep(time.Second)
		db.before = func(query string) error {
			if query == "read_due" {
				db.before = func(string) error { return nil }
				e.mu.Lock()
				e.databaseTime = e.databaseTime.Add(-500 * time.Millisecond)
				e.mu.Unlock()
				db.commit(1, "a")
				db.rows[1] = stored{due: time.Now().Add(-500*time.Millisecond + dueInterval/2)}
			}
			return nil
		}
		ids := relay(t, e, 1)
		for range 100 {
			time.Sleep(10 * time.Millisecond)
			ids = append(ids, relay(t, e, 1)...)
		}
		require.Equal(t, []int64{1}, ids)
	})
}

// Another instance may rely on a lease that a restored database does not know of.
func TestEngine_TakesNoSlotsForALease_WhenTheDatabaseWasSetBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := newTables(1)
		e := open(t, db)
		db.commit(1, "a")
		require.Equal(t, []int64{1}, relay(t, e, 1))

		db.history, db.owners[0] = "2", ""
		db.commit(2, "a")
		_, err := e.Claim(t.Context(), 1, 1<<20)
		require.ErrorIs(t, err, outbox.ErrNoLease)
		for range 9 {
			_, err = e.Claim(t.Context(), 1, 1<<20)
			require.ErrorIs(t, err, outbox.ErrNoLease)
			require.Empty(t, db.owners[0])
			time.Sleep(e.ttl / 10)
		}
		time.Sleep(e.ttl / 10)
		require.Equal(t, []int64{2}, relay(t, e, 1))
	})
}

// refused is an error of the server: the statement was not run.
type refused struct{}

func (refused) Error() string    { return "read-only" }
func (refused) SQLState() string { return readOnly }

// The others would keep a share of the slots for it for as long as a lease lasts.
func TestEngine_TellsThatItLeaves_UnlessItCannotHaveBeenNoticed(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		told bool
	}{"nobody knows": {context.Canceled, true}, "it was refused": {refused{}, false}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				db := newTables(64)
				e := open(t, db)
				db.before = func(query string) error {
					if query == "relay_appear" {
						return c.err
					}
					return nil
				}
				_, err := e.Claim(t.Context(), 1, 1<<20)
				require.ErrorIs(t, err, c.err)
				require.NoError(t, e.Release(t.Context()))
				require.Equal(t, c.told, slices.Contains(db.ran, "relay_leave"))
			})
		})
	}
}

// What was cut off may be run by the server all the same, and after the statements that undo it.
func TestEngine_IsGone_WhenItLeavesWhileItAppearsOrTakesSlots(t *testing.T) {
	for slow, undoing := range map[string]string{"relay_appear": "relay_leave", "slots_take": "slots_leave"} {
		t.Run(slow, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				db := newTables(64)
				e := open(t, db)
				db.slow, db.late = slow, 500*time.Millisecond
				ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
				defer cancel()
				_, _ = e.Claim(ctx, 1, 1<<20) // which may tell that ctx has ended
				require.NoError(t, e.Release(t.Context()))
				time.Sleep(time.Second)
				require.Contains(t, db.ran, slow)
				require.Less(t, slices.Index(db.ran, slow), slices.Index(db.ran, undoing), "%v", db.ran)
			})
		})
		t.Run(slow+", which hangs", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				db := newTables(64)
				e := open(t, db)
				db.slow, db.late = slow, time.Hour
				ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
				defer cancel()
				begun := time.Now()
				_, err := e.Claim(ctx, 1, 1<<20)
				require.ErrorIs(t, err, context.Canceled)
				require.Equal(t, 100*time.Millisecond+patienceAtEnd, time.Since(begun))
				_, err = e.Claim(ctx, 1, 1<<20) // has ended before it begins
				require.Error(t, err)
				require.Equal(t, 100*time.Millisecond+patienceAtEnd, time.Since(begun))
			})
		})
	}
}

// A restored backup does not know it, and the others would take all slots.
func TestEngine_AppearsAgain_WhenTheDatabaseHasForgottenIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := newTables(64)
		e := open(t, db)
		for range 4 {
			db.mu.Lock()
			db.there = false
			db.mu.Unlock()
			for range 10 {
				require.Empty(t, relay(t, e, 1))
				time.Sleep(e.ttl / 20)
			}
			db.mu.Lock()
			there := db.there
			db.mu.Unlock()
			require.True(t, there)
		}
	})
}

// The give of a former life may be run late. By the same name it would free slots that this life holds.
func TestEngine_HasAnotherName_WhenItClaimsAfterARelease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := newTables(64)
		e := open(t, db)
		require.Empty(t, relay(t, e, 1))
		former := e.owner
		require.Equal(t, former, db.owners[0])
		require.NoError(t, e.Release(t.Context()))
		for slot := range db.owners {
			db.owners[slot] = "" // as slots_leave does
		}
		require.Empty(t, relay(t, e, 1))
		require.NotEqual(t, former, db.owners[0])
	})
}

// A lease was lost while a message was being published, and taken again, and with it the message. What is told of the first
// claim then must not end the second, or the message would be claimed a third time while it is being published.
func TestEngine_KeepsTheNewerClaim_WhenTheOutcomeOfALostOneComesLate(t *testing.T) {
	for name, tell := range map[string]func(e *Engine, id string) error{
		"a failure": func(e *Engine, id string) error {
			return e.Settle(t.Context(), outbox.Outcome{ID: id, Status: outbox.StatusPending, RetryAfter: time.Second})
		},
		"a release": func(e *Engine, id string) error { return e.Release(t.Context(), id) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				db := newTables(1)
				e := open(t, db)
				db.commit(1, "a")
				first, err := e.Claim(t.Context(), 1, 1<<20)
				require.NoError(t, err)
				require.Len(t, first, 1)
				e.mu.Lock()
				e.drop(0)
				e.mu.Unlock()
				time.Sleep(balanceInterval)
				second, err := e.Claim(t.Context(), 1, 1<<20)
				require.NoError(t, err)
				require.Len(t, second, 1)

				require.NoError(t, tell(e, first[0].ID))
				require.False(t, e.Owned(first[0].ID))
				require.True(t, e.Owned(second[0].ID))
				require.Empty(t, relay(t, e, 1))
				require.Equal(t, []int64{1}, settle(t, e, second))
			})
		})
	}
}
