package sqlite_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/store/sqlite"
)

// Databases that fail while a Forwarder runs, and rows that somebody has changed by hand. In a synctest bubble the
// Forwarder's clock goes forward when all goroutines wait; the database's clock is the real one.

// arrivals is a broker: a channel of what was published. answer, if it is not nil, is asked first.
type arrivals struct {
	messages chan *message.Message
	answer   func(*message.Message) error
}

func newArrivals(answer func(*message.Message) error) *arrivals {
	return &arrivals{messages: make(chan *message.Message, 10_000), answer: answer}
}

func (a *arrivals) Publish(_ string, msgs ...*message.Message) error {
	for _, msg := range msgs {
		if a.answer != nil {
			if err := a.answer(msg); err != nil {
				return err
			}
		}
		a.messages <- msg
	}
	return nil
}

func (a *arrivals) Close() error { return nil }

// next returns the next payload, without what is only there to make it large.
func (a *arrivals) next(t *testing.T) string {
	t.Helper()
	select {
	case msg := <-a.messages:
		return strings.TrimSpace(string(msg.Payload))
	case <-time.After(time.Minute):
		require.FailNow(t, "nothing arrives")
		return ""
	}
}

// errorLog holds the errors that were logged, as far as there is room.
type errorLog struct {
	watermill.NopLogger
	lines chan string
}

func (l errorLog) With(watermill.LogFields) watermill.LoggerAdapter { return l }

func (l errorLog) Error(msg string, err error, _ watermill.LogFields) {
	select {
	case l.lines <- fmt.Sprintf("%s: %v", msg, err):
	default:
	}
}

// await waits for a line that contains text.
func (l errorLog) await(t *testing.T, text string) {
	t.Helper()
	for timeout := time.After(time.Minute); ; {
		select {
		case line := <-l.lines:
			if strings.Contains(line, text) {
				return
			}
		case <-timeout:
			require.FailNow(t, "it is not logged", text)
		}
	}
}

// forward runs a Forwarder until the test ends; ended gives what Run has returned.
func forward(t *testing.T, store outbox.Store, to message.Publisher, opts ...outbox.Option) (
	f *outbox.Forwarder, log errorLog, ended <-chan error,
) {
	t.Helper()
	log = errorLog{lines: make(chan string, 1000)}
	f, err := outbox.NewForwarder(store, to, append(opts, outbox.WithLogger(log))...)
	require.NoError(t, err)
	end := make(chan error, 1)
	go func() { end <- f.Run(context.Background()) }()
	t.Cleanup(func() { _ = f.Close() }) // a test that expects an error has looked at it
	select {
	case <-f.Running():
	case err := <-end:
		end <- err
	}
	return f, log, end
}

// lock, makeReadOnly and fill make a database fail until end is called. db has one connection, which its limits are of.

func lock(t *testing.T, _ *sql.DB, path string) (end func()) {
	t.Helper()
	other := open(t, path)
	tx, err := other.Begin()
	require.NoError(t, err)
	return func() { require.NoError(t, tx.Rollback()) }
}

func makeReadOnly(t *testing.T, db *sql.DB, _ string) (end func()) {
	t.Helper()
	_, err := db.Exec("PRAGMA query_only = true")
	require.NoError(t, err)
	return func() {
		_, err := db.Exec("PRAGMA query_only = false")
		require.NoError(t, err)
	}
}

func fill(t *testing.T, db *sql.DB, _ string) (end func()) {
	t.Helper()
	_, err := db.Exec("PRAGMA max_page_count = 1") // which SQLite takes for as many as there are
	require.NoError(t, err)
	return func() {
		_, err := db.Exec("PRAGMA max_page_count = 1000000")
		require.NoError(t, err)
	}
}

// impatient is a store on one connection that does not wait for a lock for long.
func impatient(t *testing.T) (store *sqlite.Store, db *sql.DB, path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "outbox.db")
	require.NoError(t, newStore(t, open(t, path)).Migrate(t.Context()))
	db = open(t, path+"?_busy_timeout=5")
	db.SetMaxOpenConns(1)
	return newStore(t, db), db, path
}

func TestForwarder_GoesOn_WhenTheDatabaseTakesWritesAgain(t *testing.T) {
	for name, c := range map[string]struct {
		begin func(*testing.T, *sql.DB, string) func()
		says  string
	}{
		"locked":    {lock, "database is locked"},
		"read-only": {makeReadOnly, "attempt to write a readonly database"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store, db, path := impatient(t)
				broker := newArrivals(nil)
				_, log, ended := forward(t, store, broker)
				end := c.begin(t, db, path)
				log.await(t, "Claiming messages failed, will be tried again: sqlite: take slots: "+c.says) // the lease has ended
				require.ErrorContains(t, store.Save(t.Context(), nil, outbox.Message{Topic: "topic"}), c.says)
				time.Sleep(time.Minute)
				require.Empty(t, log.lines, "it is said once")
				require.Empty(t, ended)
				end()
				save(t, store, "topic", "at last")
				require.Equal(t, "at last", broker.next(t))
			})
		})
	}
}

// Until a mark is made its message is in flight and not given out again, whatever became of the mark.
func TestForwarder_PublishesNothingTwice_WhenTheDatabaseFailsBetweenPublishAndMark(t *testing.T) {
	for name, c := range map[string]struct {
		begin func(*testing.T, *sql.DB, string) func()
		says  string
	}{
		"locked":    {lock, "database is locked"},
		"read-only": {makeReadOnly, "attempt to write a readonly database"},
		"full":      {fill, "database or disk is full"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store, db, path := impatient(t)
				padding := strings.Repeat(" ", 100<<10) // more than the archive has room for in pages that are there
				save(t, store, "topic", "1"+padding, "2"+padding, "3")
				var once sync.Once
				var end func()
				broker := newArrivals(func(*message.Message) error {
					once.Do(func() { end = c.begin(t, db, path) })
					return nil
				})
				_, log, _ := forward(t, store, broker, outbox.WithRetention(time.Hour))
				for _, want := range []string{"1", "2", "3"} {
					require.Equal(t, want, broker.next(t))
				}
				for range 3 {
					log.await(t, "Marking messages failed, will be tried again: sqlite: settle: "+c.says)
				}
				end()
				save(t, store, "topic", "4, behind them in their key")
				require.Equal(t, "4, behind them in their key", broker.next(t))
				time.Sleep(time.Minute)
				require.Empty(t, broker.messages)
				stats, err := store.Stats(t.Context())
				require.NoError(t, err)
				require.Zero(t, stats.Pending)
			})
		})
	}
}

// countingClaims counts how often a store is asked.
type countingClaims struct {
	*sqlite.Store
	n atomic.Int64
}

func (s *countingClaims) Claim(ctx context.Context, limit, maxBytes int) ([]outbox.Message, error) {
	s.n.Add(1)
	return s.Store.Claim(ctx, limit, maxBytes)
}

func TestForwarder_OverAClosedDatabase_NeitherSpinsNorHangs(t *testing.T) {
	for name, saved := range map[string][]string{"idle": nil, "with a mark to make": {"published"}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				db, err := sqlite.Open(filepath.Join(t.TempDir(), "outbox.db"))
				require.NoError(t, err)
				sqliteStore, err := sqlite.New(db)
				require.NoError(t, err)
				require.NoError(t, sqliteStore.Migrate(t.Context()))
				store := &countingClaims{Store: sqliteStore}
				save(t, store.Store, "topic", saved...)
				broker := newArrivals(func(*message.Message) error { return db.Close() })
				f, log, ended := forward(t, store, broker, outbox.WithCloseTimeout(time.Second))
				for range saved {
					broker.next(t)
				}
				require.NoError(t, db.Close())
				log.await(t, "will be tried again: sqlite: ")
				before := store.n.Load()
				time.Sleep(2 * time.Minute)
				require.Empty(t, ended)
				require.LessOrEqual(t, store.n.Load()-before, int64(2*60+20), "claims")
				require.LessOrEqual(t, len(log.lines), 2*60, "lines in the log")
				err = f.Close()
				require.ErrorContains(t, err, "database is closed")
				if len(saved) > 0 {
					require.ErrorContains(t, err, "mark", "what could not be done within the close timeout")
				}
				require.Equal(t, err, <-ended)
				require.ErrorContains(t, sqliteStore.Close(), "database is closed")
			})
		})
	}
}

func TestForwarder_WhoseTablesAreTakenAway_EndsAndSaysWhichCallMendsIt(t *testing.T) {
	for name, statement := range map[string]string{
		"messages": "DROP TABLE outbox_messages",
		"slots":    "DROP TABLE outbox_slots", // noticed when the lease has run out
		"a column": "ALTER TABLE outbox_messages DROP COLUMN headers",
		"the file": "",
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				path := filepath.Join(t.TempDir(), "outbox.db")
				db := open(t, path)
				store, err := sqlite.New(db)
				require.NoError(t, err)
				require.NoError(t, store.Migrate(t.Context()))
				_, _, ended := forward(t, store, newArrivals(nil))
				if statement == "" {
					require.NoError(t, errors.Join(os.Remove(path), os.Remove(path+"-wal"), os.Remove(path+"-shm")))
					db.SetMaxIdleConns(-1) // new connections make a new file
				}
				_, err = db.Exec(statement)
				require.NoError(t, err)
				select {
				case err := <-ended:
					require.ErrorIs(t, err, outbox.ErrNotMigrated)
					require.ErrorContains(t, err, "store.Migrate(ctx)")
				case <-time.After(time.Minute):
					require.FailNow(t, "it has not noticed")
				}
				_ = store.Close() // without its tables it can release nothing
			})
		})
	}
}

func TestForwarder_OverAnOlderSchema_NamesTheCallThatMendsIt(t *testing.T) {
	store, db := migrated(t)
	_, err := db.Exec("ALTER TABLE outbox_messages DROP COLUMN created_at")
	require.NoError(t, err)
	for name, run := range map[string]func(*outbox.Forwarder) error{
		"Run":   func(f *outbox.Forwarder) error { return f.Run(t.Context()) },
		"Drain": func(f *outbox.Forwarder) error { _, err := f.Drain(t.Context()); return err },
		"RouterPlugin": func(f *outbox.Forwarder) error {
			router, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
			require.NoError(t, err)
			router.AddPlugin(f.RouterPlugin)
			ctx, cancel := context.WithCancel(t.Context())
			runErr := router.Run(ctx)
			cancel()
			require.NoError(t, router.RunHandlers(ctx)) // the router waits for the handler's end, so let it end
			return runErr
		},
	} {
		t.Run(name, func(t *testing.T) {
			f, err := outbox.NewForwarder(store, newArrivals(nil), outbox.WithLogger(watermill.NopLogger{}))
			require.NoError(t, err)
			err = run(f)
			require.ErrorIs(t, err, outbox.ErrNotMigrated)
			require.ErrorContains(t, err, "created_at")
			require.ErrorContains(t, err, "store.Migrate(ctx)")
		})
	}
}

func TestStore_MissesEveryColumnThatAnOlderSchemaLacks(t *testing.T) {
	store, db := migrated(t)
	require.NoError(t, store.CheckSchema(t.Context()))
	for _, table := range []string{"outbox_messages", "outbox_archive", "outbox_slots", "outbox_processed"} {
		columns, err := column[string](t.Context(), db, "SELECT name FROM pragma_table_info(?)", table)
		require.NoError(t, err)
		require.NotEmpty(t, columns)
		for _, c := range columns {
			_, err := db.Exec(fmt.Sprintf("ALTER TABLE %s RENAME COLUMN %s TO older", table, c))
			require.NoError(t, err)
			require.ErrorIs(t, store.CheckSchema(t.Context()), outbox.ErrNotMigrated, "%s.%s", table, c)
			_, err = db.Exec(fmt.Sprintf("ALTER TABLE %s RENAME COLUMN older TO %s", table, c))
			require.NoError(t, err)
		}
	}
	require.NoError(t, store.CheckSchema(t.Context()))
}

func TestNew_RefusesAReadOnlyDatabase_AndSaysSo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "outbox.db")
	require.NoError(t, newStore(t, open(t, path)).Migrate(t.Context()))
	for _, parameter := range []string{"mode=ro", "_query_only=true"} {
		t.Run(parameter, func(t *testing.T) {
			_, err := sqlite.New(open(t, "file:"+path+"?"+parameter))
			require.ErrorContains(t, err, "readonly database")
		})
	}
}

func TestForwarder_OverTheFileOfAnother_StandsByAndTakesOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "outbox.db")
		first, second := newStore(t, open(t, path)), newStore(t, open(t, path))
		require.NoError(t, first.Migrate(t.Context()))
		one, two := newArrivals(nil), newArrivals(nil)
		f, _, _ := forward(t, first, one)
		_, log, _ := forward(t, second, two)
		for i := range 10 {
			save(t, second, "topic", strconv.Itoa(i))
			require.Equal(t, strconv.Itoa(i), one.next(t))
		}
		time.Sleep(10 * time.Second)
		require.Empty(t, two.messages)
		require.Empty(t, log.lines, "to stand by is no error")
		require.NoError(t, f.Close())
		save(t, first, "topic", "for the second")
		before := time.Now()
		require.Equal(t, "for the second", two.next(t))
		require.Less(t, time.Since(before), time.Second, "it does not wait for a lease that was given up")
		require.Empty(t, one.messages)
	})
}

func TestForwarder_GoesOnWithAKey_WhoseFailingHeadWasDeletedByHand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, db := migrated(t)
		failed := make(chan struct{}, 10_000)
		broker := newArrivals(func(msg *message.Message) error {
			if string(msg.Payload) == "head" {
				failed <- struct{}{}
				return errors.New("cannot be encoded")
			}
			return nil
		})
		save(t, store, "topic", "head", "second", "third")
		forward(t, store, broker)
		for range 20 { // by then its wait is as long as it gets
			<-failed
		}
		require.Empty(t, broker.messages)
		_, err := db.Exec("DELETE FROM outbox_messages WHERE payload = CAST('head' AS BLOB)")
		require.NoError(t, err)
		require.Equal(t, "second", broker.next(t))
		require.Equal(t, "third", broker.next(t))
		n, err := store.CountFailed(t.Context())
		require.NoError(t, err)
		require.Zero(t, n)
	})
}

func TestStore_TakesAnyTimeThatSomebodyHasWrittenIntoAvailableAt(t *testing.T) {
	store, db := migrated(t)
	for retries := range 2 { // delayed, and after a failed attempt
		for at, payload := range map[string]string{
			"0": "past", "-1": "past", "-9223372036854775808": "past", "-62135596800001": "past, before the year 1",
			"9223372036854775807": "future", "9223372036854775": "future", "253402300800000": "future, in the year 10000",
		} {
			_, err := db.Exec("INSERT INTO outbox_messages (topic, payload, retries, available_at) VALUES ('topic', ?, ?, "+at+")",
				[]byte(payload), retries)
			require.NoError(t, err)
		}
	}
	broker := newArrivals(nil)
	f, err := outbox.NewForwarder(store, broker, outbox.WithLogger(watermill.NopLogger{}))
	require.NoError(t, err)
	_, err = f.Drain(t.Context())
	require.NoError(t, err)
	for range 8 {
		require.Contains(t, broker.next(t), "past")
	}
	require.Empty(t, broker.messages)
	stats, err := store.Stats(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 6, stats.Pending)
}

func TestStore_WhatIsPublishedReachesTheBrokerAsItWas(t *testing.T) {
	store, _ := migrated(t)
	large := bytes.Repeat([]byte("\x00\xff0123456789abcde"), 10<<20/16)
	sent := map[string]*message.Message{}
	for uuid, payload := range map[string][]byte{
		"nil": nil, "empty": {}, "NULs": {0, 0, 0}, "binary": []byte("\xff\x00\xfe'\"\\\n"), "10 MB": large,
	} {
		sent[uuid] = message.NewMessage(uuid, payload)
	}
	for uuid, metadata := range map[string]message.Metadata{
		"of NULs":   {"a\x00b": "c\x00d", "\x00": "\x00"},
		"unicode":   {"grüße": "🚀 \u2028\u2029\ufffd\ufeff", "ключ": "e\u0301 is not \u00e9"},
		"no values": {"empty": "", "": "of an empty key"},
		"10 KB":     {"large": strings.Repeat("ä\\\"<", 2048), strings.Repeat("k", 10<<10): "v"},
	} {
		sent[uuid] = message.NewMessage(uuid, nil)
		sent[uuid].Metadata = metadata
	}
	pub, err := outbox.NewPublisher(store, outbox.WithOwnTx())
	require.NoError(t, err)
	for _, msg := range sent {
		require.NoError(t, pub.Publish("topic", msg))
	}
	broker := newArrivals(nil)
	f, err := outbox.NewForwarder(store, broker, outbox.WithLogger(watermill.NopLogger{}), outbox.WithMaxInFlightBytes(1<<20))
	require.NoError(t, err)
	n, err := f.Drain(t.Context())
	require.NoError(t, err)
	require.Equal(t, len(sent), n)
	for range n {
		msg := <-broker.messages
		want := sent[msg.UUID]
		require.True(t, bytes.Equal(want.Payload, msg.Payload), "the payload of %q", msg.UUID)
		require.Equal(t, want.Metadata, msg.Metadata, "the metadata of %q", msg.UUID)
	}
}

func TestForwarder_MessagesOfABlockedKeyThatFallDueHideNoOthers(t *testing.T) {
	store, db := migrated(t, sqlite.WithSweepInterval(time.Hour)) // which would find them in the end
	broker := newArrivals(func(msg *message.Message) error {
		if string(msg.Payload) == "blocked" {
			return errors.New("cannot be encoded")
		}
		return nil
	})
	now, err := column[int64](t.Context(), db, "SELECT CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)")
	require.NoError(t, err)
	due := now[0] + 500
	_, err = db.Exec(`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1020)
		INSERT INTO outbox_messages (topic, payload, key, available_at)
		SELECT 'topic', CAST(iif(i <= 1000, 'blocked', 'other') AS BLOB), iif(i <= 1000, 'blocked', i), ? + i / 100 FROM n`, due)
	require.NoError(t, err)
	forward(t, store, broker, outbox.WithBatchSize(10), outbox.WithMaxInFlight(10))
	save(t, store, "topic", "now")
	require.Equal(t, "now", broker.next(t), "the rows above it were read when they were not due yet")
	for range 20 {
		require.Equal(t, "other", broker.next(t))
	}
}
