package sqlite

import (
	"context"
	"database/sql"
	sqldriver "database/sql/driver"
	"errors"
	"io"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"github.com/stretchr/testify/require"
)

const testPatience = 5 * time.Second

// queue is a line of goroutines that want the turn, in a synctest bubble.
type queue struct {
	*writers
	entered chan string
	leaving map[string]chan struct{}
	failed  sync.Map // name → error
}

func newQueue(t *testing.T) *queue {
	t.Helper()
	db := new(sql.DB)
	t.Cleanup(func() { runtime.KeepAlive(db) })
	return &queue{writers: writersOf(db), entered: make(chan string, 100), leaving: map[string]chan struct{}{}}
}

// join has somebody want the turn, and returns when he has it or waits.
func (q *queue) join(name string, isTransaction bool) {
	leave := make(chan struct{})
	q.leaving[name] = leave
	go func() {
		if err := q.enter(context.Background(), testPatience, isTransaction); err != nil {
			q.failed.Store(name, err)
			return
		}
		if isTransaction {
			q.open.Store(&transaction{})
		}
		q.entered <- name
		<-leave
		q.open.Store(nil)
		q.leave()
	}()
	synctest.Wait()
}

// failure returns why somebody has given up, or nil if nobody of that name has.
func (q *queue) failure(name string) error {
	synctest.Wait()
	err, _ := q.failed.Load(name)
	failure, _ := err.(error)
	return failure
}

// next returns who has the turn now.
func (q *queue) next(t *testing.T) string {
	t.Helper()
	synctest.Wait()
	require.Len(t, q.entered, 1, "one at a time")
	return <-q.entered
}

// serveAll lets everybody go, one after another, and returns their names.
func (q *queue) serveAll(t *testing.T, n int) (names []string) {
	t.Helper()
	for range n {
		name := q.next(t)
		names = append(names, name)
		close(q.leaving[name])
	}
	synctest.Wait()
	require.Empty(t, q.entered)
	return names
}

func TestWriters_TransactionsHaveTheTurnInTheOrderInWhichTheyCame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t)
		var names []string
		for i := range 50 {
			names = append(names, strconv.Itoa(i))
			q.join(names[i], true)
		}
		require.Equal(t, names, q.serveAll(t, len(names)))
		require.NoError(t, q.failure("49"))
	})
}

func TestWriters_AStatementWaitsForTwoTransactionsAtMost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t)
		for i := range 5 {
			q.join(strconv.Itoa(i), true)
		}
		q.join("statement", false)
		q.join("another", false)
		require.Equal(t, []string{"0", "1", "statement", "another", "2", "3", "4"}, q.serveAll(t, 7))
	})
}

// The one who has the turn waits for the one within; nobody else is to suffer but who came in between.
func TestWriters_WhoWantsTheTurnWithinATurnGivesUp_AndThoseWhoCameBeforeGoOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t)
		q.join("first", true)
		q.join("before", true)
		q.join("statement before", false)
		close(q.leaving[q.next(t)])
		require.Equal(t, "before", q.next(t))
		q.join("within", true)
		q.join("after", true)
		time.Sleep(testPatience + time.Second)
		require.ErrorIs(t, q.failure("within"), errInTheWay)
		require.ErrorIs(t, q.failure("after"), errInTheWay)
		close(q.leaving["before"])
		require.Equal(t, []string{"statement before"}, q.serveAll(t, 1))
		q.join("later", true)
		require.Equal(t, []string{"later"}, q.serveAll(t, 1), "who has given up has left nothing behind")
	})
}

func TestWriters_NobodyGivesUp_WhileTheTurnChangesHands(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t)
		for i := range 10 {
			q.join(strconv.Itoa(i), true)
		}
		for range 10 {
			time.Sleep(testPatience / 2)
			close(q.leaving[q.next(t)]) // there is a next one
		}
	})
}

// Nothing can be waiting for itself then: the one who has the turn is waiting for another process, say.
func TestWriters_NobodyGivesUp_WhileNoTransactionIsOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t)
		q.join("statement", false)
		q.join("transaction", true)
		time.Sleep(2 * testPatience)
		close(q.leaving[q.next(t)])
		require.Equal(t, []string{"transaction"}, q.serveAll(t, 1))
	})
}

func TestWriters_EveryWaitEnds(t *testing.T) {
	for name, transaction := range map[string]bool{"transaction": true, "statement": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q := newQueue(t)
				q.join("first", true)
				q.join("second", true)
				q.join("third", transaction)
				time.Sleep(testPatience - time.Second)
				close(q.leaving[q.next(t)])
				require.Equal(t, "second", q.next(t)) // it hangs, and the third was there before
				time.Sleep(waitTimeout)
				err := q.failure("third")
				require.ErrorIs(t, err, context.DeadlineExceeded)
				require.ErrorContains(t, err, "database is locked")
				close(q.leaving["second"])
			})
		})
	}
}

func TestWriters_AContextThatEndsEndsTheWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t)
		q.join("first", true)
		ctx, cancel := context.WithCancel(t.Context())
		for _, transaction := range []bool{true, false} {
			ended := make(chan error)
			go func() { ended <- q.enter(ctx, testPatience, transaction) }()
			synctest.Wait()
			defer func() { require.ErrorIs(t, <-ended, context.Canceled) }()
		}
		cancel()
		require.ErrorIs(t, q.enter(ctx, testPatience, true), context.Canceled)
		close(q.leaving[q.next(t)])
	})
}

func TestWriters_AreOneQueueForADatabaseHandle_AndGoWithIt(t *testing.T) {
	db, err := Open(filepath.Join(t.TempDir(), "outbox.db"))
	require.NoError(t, err)
	other := new(sql.DB)
	queue := writersOf(db)
	require.Same(t, queue, writersOf(db))
	require.NotSame(t, queue, writersOf(other))
	store, err := New(db)
	require.NoError(t, err)
	require.NoError(t, store.Migrate(t.Context()))
	require.NoError(t, store.InTx(t.Context(), func(context.Context, *sql.Tx) error { return nil }))
	require.NoError(t, store.Close())
	require.NoError(t, db.Close())
	key := weak.Make(db)
	db, store = nil, nil //nolint:wastedassign // nothing is to refer to them
	for deadline := time.Now().Add(30 * time.Second); ; {
		runtime.GC()
		if _, kept := queues.Load(key); !kept {
			break
		}
		require.True(t, time.Now().Before(deadline), "the queue outlives its database")
	}
	runtime.KeepAlive(other)
}

// busyConn is a connection of a driver whose database is locked for a number of BEGINs. Each version is what PRAGMA
// data_version then says.
type busyConn struct {
	sqldriver.Conn
	versions []int64
	begun    int
}

func (c *busyConn) Connect(context.Context) (sqldriver.Conn, error) { return c, nil }
func (c *busyConn) Driver() sqldriver.Driver                        { return nil }
func (c *busyConn) Close() error                                    { return nil }

func (c *busyConn) BeginTx(context.Context, sqldriver.TxOptions) (sqldriver.Tx, error) {
	c.begun++
	if c.begun <= len(c.versions) {
		return nil, errors.New("database is locked")
	}
	return c, nil
}

func (c *busyConn) Commit() error   { return nil }
func (c *busyConn) Rollback() error { return nil }

func (c *busyConn) QueryContext(context.Context, string, []sqldriver.NamedValue) (sqldriver.Rows, error) {
	return &oneRow{value: c.versions[c.begun-1]}, nil
}

type oneRow struct {
	value int64
	read  bool
}

func (*oneRow) Columns() []string { return []string{"data_version"} }
func (*oneRow) Close() error      { return nil }

func (r *oneRow) Next(dest []sqldriver.Value) error {
	if r.read {
		return io.EOF
	}
	dest[0], r.read = r.value, true
	return nil
}

func TestBegin_IsTriedAgain_AsLongAsOthersCommit(t *testing.T) {
	for name, c := range map[string]struct {
		versions []int64
		begins   int
		err      error
	}{
		"free":                     {nil, 1, nil},
		"free again":               {[]int64{1}, 2, nil},
		"others commit":            {[]int64{1, 2, 3, 4, 5, 6, 7}, 8, nil},
		"a transaction stays open": {[]int64{1, 2, 2, 3}, 3, errInTheWay},
	} {
		t.Run(name, func(t *testing.T) {
			driverConn := &busyConn{versions: c.versions}
			db := sql.OpenDB(driverConn)
			defer func() { require.NoError(t, db.Close()) }()
			conn, err := db.Conn(t.Context())
			require.NoError(t, err)
			tx, err := beginOn(t.Context(), conn)
			require.ErrorIs(t, err, c.err)
			require.Equal(t, c.begins, driverConn.begun)
			if tx != nil {
				require.NoError(t, tx.Rollback())
			} else {
				require.ErrorContains(t, err, "database is locked")
			}
			require.NoError(t, conn.Close())
		})
	}
	t.Run("until the context ends", func(t *testing.T) {
		driverConn := &busyConn{versions: []int64{1, 2, 3}}
		db := sql.OpenDB(driverConn)
		defer func() { require.NoError(t, db.Close()) }()
		conn, err := db.Conn(t.Context())
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err = beginOn(ctx, conn)
		require.ErrorIs(t, err, errInTheWay)
		require.Equal(t, 1, driverConn.begun)
		require.NoError(t, conn.Close())
	})
}
