package sqlite_test

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/migrations"
	"github.com/watermill-outbox/outbox/store/sqlite"
)

func TestMain(m *testing.M) {
	if path := os.Getenv("OUTBOX_TEST_RELAY"); path != "" {
		relayForTest(path)
		return
	}
	goleak.VerifyTestMain(m)
}

func open(t *testing.T, path string) *sql.DB {
	t.Helper()
	db, err := sqlite.Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	return db
}

func newStore(t *testing.T, db *sql.DB, opts ...sqlite.Option) *sqlite.Store {
	t.Helper()
	store, err := sqlite.New(db, opts...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	return store
}

func migrated(t *testing.T, opts ...sqlite.Option) (*sqlite.Store, *sql.DB) {
	t.Helper()
	db := open(t, filepath.Join(t.TempDir(), "outbox.db"))
	store := newStore(t, db, opts...)
	require.NoError(t, store.Migrate(t.Context()))
	return store, db
}

func save(t *testing.T, store *sqlite.Store, topic string, payloads ...string) {
	t.Helper()
	require.NoError(t, store.InTx(t.Context(), func(_ context.Context, tx *sql.Tx) error {
		for _, p := range payloads {
			msg := message.NewMessage(watermill.NewUUID(), []byte(p))
			outbox.SetKey(msg, "key")
			if err := store.Publisher(tx).Publish(topic, msg); err != nil {
				return err
			}
		}
		return nil
	}))
}

func TestOpen_SetsWhatTheOutboxNeeds_OnEveryConnection(t *testing.T) {
	db := open(t, filepath.Join(t.TempDir(), "a file with spaces & % and ünïcode.db"))
	var conns []*sql.Conn
	for range 3 {
		conn, err := db.Conn(t.Context())
		require.NoError(t, err)
		conns = append(conns, conn)
		for pragma, want := range map[string]string{"journal_mode": "wal", "busy_timeout": "5000", "synchronous": "2"} {
			var got string
			require.NoError(t, conn.QueryRowContext(t.Context(), "PRAGMA "+pragma).Scan(&got))
			require.Equal(t, want, got, pragma)
		}
	}
	for _, conn := range conns {
		require.NoError(t, conn.Close())
	}
}

func TestOpen_TakesEveryWayToNameAFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "me@home.db")
	for _, path := range []string{file, "/" + file, "file:" + file, "file://" + file, "file://localhost" + file} {
		require.NoError(t, open(t, path).Ping(), path)
		require.FileExists(t, file)
		require.NoError(t, os.Remove(file))
	}
}

func TestOpen_LetsParametersTakePrecedence(t *testing.T) {
	db := open(t, filepath.Join(t.TempDir(), "outbox.db")+"?_synchronous=NORMAL&_busy_timeout=7")
	var synchronous, timeout int
	require.NoError(t, db.QueryRow("PRAGMA synchronous").Scan(&synchronous))
	require.NoError(t, db.QueryRow("PRAGMA busy_timeout").Scan(&timeout))
	require.Equal(t, 1, synchronous)
	require.Equal(t, 7, timeout)
}

func TestOpen_SaysWhatIsWrong(t *testing.T) {
	for path, want := range map[string]string{
		":memory:":                  "package store/memory in tests",
		"":                          "needs a path",
		"file:?_synchronous=NORMAL": "needs a path",
		"file:x?mode=memory":        "package store/memory in tests",
		"outbox.db?%zz":             "write %25 for %",
		"file://host/outbox.db":     "names a host",
		"/nowhere/at/all/outbox.db": `open "/nowhere/at/all/outbox.db"`,
	} {
		_, err := sqlite.Open(path)
		require.ErrorContains(t, err, want)
	}
}

func TestNew_RefusesADatabaseWithoutTheSettings_AndNamesTheDSN(t *testing.T) {
	for name, params := range map[string]string{
		"no WAL":            "_txlock=immediate&_busy_timeout=5000",
		"no busy timeout":   "_txlock=immediate&_journal_mode=WAL&_busy_timeout=0",
		"deferred":          "_journal_mode=WAL&_busy_timeout=5000",
		"deferred, by name": "_journal_mode=WAL&_busy_timeout=5000&_txlock=deferred",
	} {
		t.Run(name, func(t *testing.T) {
			db, err := sql.Open("sqlite3", "file:"+filepath.Join(t.TempDir(), "x.db")+"?"+params)
			require.NoError(t, err)
			defer func() { require.NoError(t, db.Close()) }()
			_, err = sqlite.New(db)
			require.ErrorContains(t, err, "_journal_mode=WAL&_busy_timeout=5000&_txlock=immediate")
		})
	}
	_, err := sqlite.New(nil)
	require.ErrorContains(t, err, "sqlite.Open")
}

func TestNew_RefusesConnectionsThatShareACache_AndNamesTheParameter(t *testing.T) {
	_, err := sqlite.New(open(t, filepath.Join(t.TempDir(), "outbox.db?cache=shared")))
	require.ErrorContains(t, err, "leave out the parameter cache=shared")
}

func TestNew_TakesADatabaseThatAnotherProcessIsWritingTo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "outbox.db")
	tx, err := open(t, path).Begin()
	require.NoError(t, err)
	newStore(t, open(t, path+"?_busy_timeout=20"))
	require.NoError(t, tx.Rollback())
}

func TestNew_ChecksOptions(t *testing.T) {
	db := open(t, filepath.Join(t.TempDir(), "outbox.db"))
	for _, prefix := range []string{`a"b`, "a b", "a;DROP TABLE x", "1a", "ä", strings.Repeat("a", 31)} {
		_, err := sqlite.New(db, sqlite.WithPrefix(prefix))
		require.ErrorContains(t, err, "prefix")
	}
	_, err := sqlite.New(db, sqlite.WithLeaseTTL(time.Nanosecond))
	require.ErrorContains(t, err, "LeaseTTL is 1ns, must be from 100ms to 1h")
}

func TestStore_PrefixesLiveSideBySide(t *testing.T) {
	db := open(t, filepath.Join(t.TempDir(), "outbox.db"))
	a, b := newStore(t, db, sqlite.WithPrefix("a_")), newStore(t, db, sqlite.WithPrefix("b_"))
	require.NoError(t, a.Migrate(t.Context()))
	require.NoError(t, b.Migrate(t.Context()))
	save(t, a, "topic", "for a")
	tx, err := db.Begin()
	require.NoError(t, err)
	ctx := a.ContextWithTx(t.Context(), tx)
	_, found := b.TxFromContext(ctx)
	require.False(t, found, "two outboxes never take each other's transactions")
	require.NoError(t, tx.Rollback())
	msgs, err := b.FetchPending(t.Context(), 10)
	require.NoError(t, err)
	require.Empty(t, msgs)
	msgs, err = a.FetchPending(t.Context(), 10)
	require.NoError(t, err)
	require.Len(t, msgs, 1)
}

func TestStore_WithoutTables_SaysWhichCallMendsIt(t *testing.T) {
	db := open(t, filepath.Join(t.TempDir(), "outbox.db"))
	store := newStore(t, db)
	_, err := store.Claim(t.Context(), 1, 1)
	require.ErrorIs(t, err, outbox.ErrNotMigrated)
	require.ErrorContains(t, err, "store.Migrate(ctx)")
	err = store.Save(t.Context(), nil, outbox.Message{Topic: "t"})
	require.ErrorIs(t, err, outbox.ErrNotMigrated)
	_, err = store.Processed().MarkProcessed(t.Context(), nil, "g", "m", nil)
	require.ErrorIs(t, err, outbox.ErrNotMigrated)

	require.NoError(t, store.Migrate(t.Context()))
	_, err = db.Exec("ALTER TABLE outbox_messages DROP COLUMN last_error")
	require.NoError(t, err)
	_, err = store.Claim(t.Context(), 1, 1)
	require.ErrorIs(t, err, outbox.ErrNotMigrated, "a column is missing")
}

func TestStore_ARowThatWasDamagedByHandIsSetAside_AndTheOthersGoOn(t *testing.T) {
	for name, damage := range map[string]string{
		"headers":             "UPDATE outbox_messages SET headers = '{' WHERE payload = 'two'",
		"headers of a number": `UPDATE outbox_messages SET headers = '{"a":1}' WHERE payload = 'two'`,
		"headers, not UTF-8":  `UPDATE outbox_messages SET headers = CAST(x'7B2261223A22FF227D' AS TEXT) WHERE payload = 'two'`,
		"retries":             "UPDATE outbox_messages SET retries = 'many' WHERE payload = 'two'",
		"topic":               "UPDATE outbox_messages SET topic = '' WHERE payload = 'two'",
		"uuid, not UTF-8":     "UPDATE outbox_messages SET uuid = CAST(x'FF' AS TEXT), topic = '' WHERE payload = 'two'",
		"created_at":          "UPDATE outbox_messages SET created_at = 'yesterday' WHERE payload = 'two'",
		"available_at":        "UPDATE outbox_messages SET available_at = 'soon' WHERE payload = 'two'",
	} {
		t.Run(name, func(t *testing.T) {
			store, db := migrated(t)
			save(t, store, "topic", "one", "two", "three")
			result, err := db.Exec(strings.ReplaceAll(damage, "'two'", "CAST('two' AS BLOB)"))
			require.NoError(t, err)
			n, err := result.RowsAffected()
			require.NoError(t, err)
			require.EqualValues(t, 1, n)

			published := &recorder{}
			f, err := outbox.NewForwarder(store, published, outbox.WithLogger(watermill.NopLogger{}))
			require.NoError(t, err)
			_, err = f.Drain(t.Context())
			require.ErrorContains(t, err, "column")
			require.Equal(t, []string{"one", "three"}, published.payloads)
			failed, err := store.ListFailed(t.Context(), "", 10)
			require.NoError(t, err)
			require.Len(t, failed, 1)
			require.Contains(t, failed[0].LastError, "column")
		})
	}
}

type recorder struct{ payloads []string }

func (r *recorder) Publish(_ string, msgs ...*message.Message) error {
	for _, msg := range msgs {
		r.payloads = append(r.payloads, string(msg.Payload))
	}
	return nil
}

func (r *recorder) Close() error { return nil }

func TestStore_PlainSQLFromAnyLanguageIsForwarded(t *testing.T) {
	store, db := migrated(t)
	_, err := db.Exec("INSERT INTO outbox_messages (topic, payload) VALUES ('topic', 'text, not a blob')")
	require.NoError(t, err)
	published := &recorder{}
	f, err := outbox.NewForwarder(store, published, outbox.WithLogger(watermill.NopLogger{}))
	require.NoError(t, err)
	_, err = f.Drain(t.Context())
	require.NoError(t, err)
	require.Equal(t, []string{"text, not a blob"}, published.payloads)
}

func TestStore_SavesMoreRowsThanOneStatementTakes_AllOrNothing(t *testing.T) {
	store, db := migrated(t)
	msgs := make([]outbox.Message, 12_000)
	for i := range msgs {
		msgs[i].Topic = "topic"
	}
	tx, err := db.Begin()
	require.NoError(t, err)
	require.NoError(t, store.Save(t.Context(), tx, msgs...))
	msgs[11_999].Headers = map[string]string{"fine": "so far"}
	_, err = tx.Exec("CREATE TEMP TRIGGER full BEFORE INSERT ON outbox_messages WHEN new.headers <> '{}' " +
		"BEGIN SELECT raise(ABORT, 'disk full'); END")
	require.NoError(t, err)
	require.ErrorContains(t, store.Save(t.Context(), tx, msgs...), "disk full")
	require.NoError(t, tx.Commit())
	stats, err := store.Stats(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 12_000, stats.Pending, "the first call whole, the second not at all")
	require.Equal(t, map[string]int64{"topic": 12_000}, stats.PendingByTopic)
}

func TestStore_MessageIDsOfAnyLengthAreHandledOnce(t *testing.T) {
	store, _ := migrated(t)
	p := store.Processed()
	for _, id := range []string{strings.Repeat("a", 10<<10), strings.Repeat("a", 10<<10-1) + "b", "a"} {
		for _, want := range []bool{true, false} {
			isNew, err := p.MarkProcessed(t.Context(), nil, "group", id, nil)
			require.NoError(t, err)
			require.Equal(t, want, isNew)
		}
	}
}

func TestMigrations_GoWithTheStore(t *testing.T) {
	db := open(t, filepath.Join(t.TempDir(), "outbox.db"))
	script, err := migrations.SQL("sqlite3", 0, 1, migrations.WithPrefix("mine_"))
	require.NoError(t, err)
	_, err = db.Exec(script)
	require.NoError(t, err)
	store := newStore(t, db, sqlite.WithPrefix("mine_"))
	save(t, store, "topic", "x")
	msgs, err := store.Claim(t.Context(), 1, 1)
	require.NoError(t, err)
	require.Len(t, msgs, 1)
}

// relayForTest is the body of another process: it relays from the file until it is killed.
func relayForTest(path string) {
	db, err := sqlite.Open(path)
	if err != nil {
		panic(err)
	}
	store, err := sqlite.New(db, sqlite.WithLeaseTTL(500*time.Millisecond))
	if err != nil {
		panic(err)
	}
	f, err := outbox.NewForwarder(store, writer{}, outbox.WithLogger(watermill.NopLogger{}))
	if err != nil {
		panic(err)
	}
	panic(f.Run(context.Background()))
}

// writer publishes to standard output.
type writer struct{}

func (writer) Publish(_ string, msgs ...*message.Message) error {
	for _, msg := range msgs {
		if _, err := os.Stdout.Write(append(msg.Payload, '\n')); err != nil {
			return err
		}
	}
	return nil
}

func (writer) Close() error { return nil }

func TestStore_AnotherProcessTakesOverFromOneThatWasKilled(t *testing.T) {
	path := filepath.Join(t.TempDir(), "outbox.db")
	store := newStore(t, open(t, path), sqlite.WithLeaseTTL(500*time.Millisecond))
	require.NoError(t, store.Migrate(t.Context()))

	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), "OUTBOX_TEST_RELAY="+path)
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, child.Start())
	save(t, store, "topic", "by the child")
	line := make([]byte, len("by the child\n"))
	_, err = out.Read(line)
	require.NoError(t, err)
	require.Equal(t, "by the child\n", string(line))
	_, err = store.Claim(t.Context(), 10, 1<<20)
	require.ErrorIs(t, err, outbox.ErrNoLease, "the child relays")

	require.NoError(t, child.Process.Kill())
	require.Error(t, child.Wait())
	save(t, store, "topic", "left behind")
	var msgs []outbox.Message
	require.Eventually(t, func() bool {
		msgs, err = store.Claim(t.Context(), 10, 1<<20)
		return err == nil && len(msgs) > 0
	}, 30*time.Second, 10*time.Millisecond)
	require.Equal(t, "left behind", string(msgs[len(msgs)-1].Payload))
}

func TestStore_AMarkDoesNotHitTheRowThatTookItsID(t *testing.T) {
	for name, outcome := range map[string]outbox.Outcome{
		"published": {Status: outbox.StatusProcessed},
		"archived":  {Status: outbox.StatusProcessed, Archive: true},
		"failed":    {Status: outbox.StatusPending, Err: errors.New("no")},
		"set aside": {Status: outbox.StatusFailed, Err: errors.New("no")},
	} {
		t.Run(name, func(t *testing.T) {
			store, db := migrated(t)
			save(t, store, "topic", "before the restore")
			msgs, err := store.Claim(t.Context(), 1, 1<<20)
			require.NoError(t, err)
			_, err = db.Exec("UPDATE outbox_messages SET uuid = 'another', payload = 'after the restore'")
			require.NoError(t, err)
			outcome.ID = msgs[0].ID
			require.NoError(t, store.Settle(t.Context(), outcome))
			rows, err := store.Pending(t.Context(), nil, 10)
			require.NoError(t, err)
			require.Len(t, rows, 1)
			require.Equal(t, "after the restore", string(rows[0].Payload))
			require.Zero(t, rows[0].Retries)
			failed, err := store.CountFailed(t.Context())
			require.NoError(t, err)
			require.Zero(t, failed)
		})
	}
}

func TestStore_ThePurgeDoesNotTouchASetAsideMessageWithTheSameID(t *testing.T) {
	store, db := migrated(t)
	for _, status := range []string{"processed", "failed"} {
		_, err := db.Exec(`INSERT INTO outbox_archive (id, uuid, topic, key, payload, headers, retries, last_error, created_at,
			status, processed_at) VALUES (1, ?1, 't', '', x'', '{}', 0, '', 1, ?1, 2)`, status)
		require.NoError(t, err)
	}
	n, err := store.DeleteProcessedBefore(t.Context(), time.Now())
	require.NoError(t, err)
	require.EqualValues(t, 1, n)
	failed, err := store.CountFailed(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 1, failed)
}

func TestStore_AClaimReadsOnUntilThereIsSomethingToClaim(t *testing.T) {
	store, db := migrated(t)
	_, err := db.Exec(`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
		INSERT INTO outbox_messages (topic, payload, available_at) SELECT 'later', x'', 1e15 FROM n`)
	require.NoError(t, err)
	save(t, store, "topic", "now")
	msgs, err := store.Claim(t.Context(), 10, 1<<20)
	require.NoError(t, err)
	require.Len(t, msgs, 1)
}

func TestStore_ATopicThatIsDownStopsNobodyElse_HoweverLargeItsBacklog(t *testing.T) {
	if testing.Short() {
		t.Skip("a backlog that does not fit in memory is long")
	}
	store, db := migrated(t)
	_, err := db.Exec(`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 260000)
		INSERT INTO outbox_messages (topic, payload, key) SELECT 'down', x'', i FROM n`) // more than fit in memory
	require.NoError(t, err)
	save(t, store, "works", "alive")
	store.PauseTopics("down")
	msgs, err := store.Claim(t.Context(), 10, 1<<20)
	require.NoError(t, err)
	require.Len(t, msgs, 1)
	require.Equal(t, "alive", string(msgs[0].Payload))
	store.PauseTopics()
	for total := 0; total < 260000; {
		msgs, err := store.Claim(t.Context(), 20000, 64<<20)
		require.NoError(t, err)
		require.NotEmpty(t, msgs, "after %d", total)
		total += len(msgs)
		outcomes := make([]outbox.Outcome, len(msgs))
		for i, m := range msgs {
			outcomes[i] = outbox.Outcome{ID: m.ID, Status: outbox.StatusProcessed}
		}
		require.NoError(t, store.Settle(t.Context(), outcomes...))
	}
}

func TestStore_ASweepFindsWhatTheReadsHavePassed(t *testing.T) {
	store, db := migrated(t, sqlite.WithSweepInterval(time.Millisecond))
	for i := range 20 {
		_, err := db.Exec("INSERT INTO outbox_messages (topic, payload, available_at) VALUES ('t', ?, ?)", strconv.Itoa(i),
			time.Now().Add(time.Hour).UnixMilli())
		require.NoError(t, err)
	}
	save(t, store, "t", "now")
	missed := make(chan outbox.Event, 100)
	ctx := outbox.ContextWithObserver(t.Context(), outbox.ObserverFunc(func(_ context.Context, event outbox.Event) {
		if _, ok := event.(outbox.MissedEvent); ok {
			missed <- event
		}
	}))
	claim := func() []string {
		var payloads []string
		require.Eventually(t, func() bool {
			msgs, err := store.Claim(ctx, 100, 1<<20)
			require.NoError(t, err)
			for _, m := range msgs {
				payloads = append(payloads, string(m.Payload))
				require.NoError(t, store.MarkProcessed(t.Context(), m.ID))
			}
			return len(payloads) > 0
		}, 30*time.Second, time.Millisecond)
		return payloads
	}
	require.Equal(t, []string{"now"}, claim())
	for name, statement := range map[string]string{
		"a delay that is taken away":  "UPDATE outbox_messages SET available_at = NULL, payload = 'found' WHERE id = 7",
		"a row that reappears":        "INSERT INTO outbox_messages (id, topic, payload) VALUES (7, 't', 'found')",
		"a sequence that begins anew": "UPDATE sqlite_sequence SET seq = 0; DELETE FROM outbox_messages; INSERT INTO outbox_messages (topic, payload) VALUES ('t', 'found')",
	} {
		_, err := db.Exec("DELETE FROM outbox_messages WHERE id = 7 AND ? <> 'a delay that is taken away'", name)
		require.NoError(t, err)
		if name == "a delay that is taken away" {
			_, err := db.Exec("INSERT OR REPLACE INTO outbox_messages (id, topic, payload, available_at) VALUES (7, 't', '7', 1e15)")
			require.NoError(t, err)
			_, err = store.Claim(t.Context(), 100, 1<<20)
			require.NoError(t, err)
		}
		_, err = db.Exec(statement)
		require.NoError(t, err)
		require.Equal(t, []string{"found"}, claim(), name)
	}
	require.NotEmpty(t, (<-missed).(outbox.MissedEvent).ID, "at least the first was passed by")
}

func TestStore_KeepsNoMorePayloadInMemoryThanItsBudgets(t *testing.T) {
	if testing.Short() {
		t.Skip("100 MB are long")
	}
	store, db := migrated(t)
	_, err := db.Exec(`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 400)
		INSERT INTO outbox_messages (topic, payload, key) SELECT 'large', zeroblob(262144), i FROM n`) // 100 MB
	require.NoError(t, err)
	var before, now runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for total := 0; total < 400; {
		msgs, err := store.Claim(t.Context(), 1000, 2<<20)
		require.NoError(t, err)
		require.NotEmpty(t, msgs)
		require.LessOrEqual(t, len(msgs), 8)
		total += len(msgs)
		var ids []string
		for _, m := range msgs {
			ids = append(ids, m.ID)
		}
		require.NoError(t, store.MarkProcessed(t.Context(), ids...))
		if total%40 == 0 {
			runtime.GC()
			runtime.ReadMemStats(&now)
			require.Less(t, now.HeapAlloc, before.HeapAlloc+40<<20, "after %d messages", total)
		}
	}
}

func TestStore_AnObserverMayCallTheStore(t *testing.T) {
	store, _ := migrated(t)
	told := 0
	ctx := outbox.ContextWithObserver(t.Context(), outbox.ObserverFunc(func(ctx context.Context, _ outbox.Event) {
		told++
		_, err := store.Claim(ctx, 1, 1)
		require.True(t, err == nil || errors.Is(err, outbox.ErrNoLease) || errors.Is(err, outbox.ErrClosed), "%v", err)
		store.PauseTopics()
		if told < 5 { // it tells of what it does here, too
			require.NoError(t, store.Release(ctx))
		}
	}))
	_, err := store.Claim(ctx, 1, 1)
	require.NoError(t, err)
	require.NotZero(t, told)
}

func TestStore_ATransactionThatSQLiteHasEndedTakesNoMoreStatements(t *testing.T) {
	path := filepath.Join(t.TempDir(), "outbox.db")
	require.NoError(t, newStore(t, open(t, path)).Migrate(t.Context()))
	db := open(t, path)
	db.SetMaxOpenConns(1) // the limit below is the connection's
	store := newStore(t, db)
	var pages int
	require.NoError(t, db.QueryRow("PRAGMA page_count").Scan(&pages))
	_, err := db.Exec("PRAGMA max_page_count = " + strconv.Itoa(pages+10))
	require.NoError(t, err)

	tx, err := db.Begin()
	require.NoError(t, err)
	err = store.Publisher(tx).Publish("topic", message.NewMessage("large", make([]byte, 1<<20)))
	require.ErrorContains(t, err, "full")
	require.ErrorIs(t, store.Publisher(tx).Publish("topic", message.NewMessage("small", nil)), sql.ErrTxDone)
	require.ErrorIs(t, tx.Commit(), sql.ErrTxDone)
	rows, err := store.Pending(t.Context(), nil, 10)
	require.NoError(t, err)
	require.Empty(t, rows, "the second one would have been a phantom")
}

func TestStore_AUUIDThatIsABlobIsOneLikeOthers(t *testing.T) {
	store, db := migrated(t)
	_, err := db.Exec("INSERT INTO outbox_messages (topic, payload, uuid) VALUES ('t', x'', CAST('abc' AS BLOB)), ('t', x'', x'FF')")
	require.NoError(t, err)
	for range 2 {
		msgs, err := store.Claim(t.Context(), 10, 1<<20)
		require.NoError(t, err)
		for _, m := range msgs {
			require.NoError(t, store.MarkProcessed(t.Context(), m.ID))
		}
		require.NoError(t, store.Release(t.Context()))
	}
	stats, err := store.Stats(t.Context())
	require.NoError(t, err)
	require.Zero(t, stats.Pending)
}

func TestStore_WithoutItsSlots_SaysSo(t *testing.T) {
	store, db := migrated(t)
	_, err := db.Exec("DELETE FROM outbox_slots") // as tests do that empty all tables
	require.NoError(t, err)
	_, err = store.Claim(t.Context(), 1, 1)
	require.ErrorContains(t, err, "outbox_slots\" is empty")
}

func TestStats_TellHowLongTheOldestHasBeenDue(t *testing.T) {
	store, db := migrated(t)
	age := func() time.Duration {
		stats, err := store.Stats(t.Context())
		require.NoError(t, err)
		return stats.OldestAge.Round(time.Minute)
	}
	insert := func(dueIn, savedAgo time.Duration, retries int) {
		now := time.Now()
		_, err := db.Exec("INSERT INTO outbox_messages (topic, payload, available_at, created_at, retries) VALUES ('t', x'', ?, ?, ?)",
			now.Add(dueIn).UnixMilli(), now.Add(-savedAgo).UnixMilli(), retries)
		require.NoError(t, err)
	}
	require.Zero(t, age())
	insert(time.Hour, 23*time.Hour, 0)
	require.Zero(t, age(), "a delayed message is not late")
	save(t, store, "t", "now")
	insert(-time.Hour, 2*time.Hour, 0)
	require.Equal(t, time.Hour, age(), "it has been due for an hour, though others have lower ids")
	insert(time.Minute, 3*time.Hour, 4)
	require.Equal(t, 3*time.Hour, age(), "one that fails has been late since it was saved")
}

func TestStore_AMarkIsMadeAfterItsLeaseWasLost(t *testing.T) {
	store, db := migrated(t, sqlite.WithLeaseTTL(100*time.Millisecond))
	save(t, store, "topic", "x")
	msgs, err := store.Claim(t.Context(), 1, 1<<20)
	require.NoError(t, err)
	_, err = db.Exec("UPDATE outbox_slots SET owner = 'another', expires_at = 1e15")
	require.NoError(t, err)
	require.Eventually(t, func() bool { return !store.Owned(msgs[0].ID) }, 30*time.Second, time.Millisecond)
	_, err = store.Claim(t.Context(), 1, 1<<20)
	require.ErrorIs(t, err, outbox.ErrNoLease)
	require.NoError(t, store.MarkProcessed(t.Context(), msgs[0].ID))
	stats, err := store.Stats(t.Context())
	require.NoError(t, err)
	require.Zero(t, stats.Pending)
}

func TestStore_OneInstanceLeads_HoweverManyAskAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "outbox.db?_synchronous=NORMAL")
	var stores []*sqlite.Store
	for range 6 {
		stores = append(stores, newStore(t, open(t, path)))
	}
	require.NoError(t, stores[0].Migrate(t.Context()))
	for range 20 {
		begin := make(chan struct{})
		leaders := make(chan *sqlite.Store, len(stores))
		var wg sync.WaitGroup
		for _, s := range stores {
			wg.Go(func() {
				<-begin
				if _, err := s.Claim(context.Background(), 1, 1); err == nil {
					leaders <- s
				}
			})
		}
		close(begin)
		wg.Wait()
		close(leaders)
		require.Len(t, leaders, 1)
		require.NoError(t, (<-leaders).Release(t.Context()))
	}
}

func TestNotify_HearsOfCommitsOfOtherConnections(t *testing.T) {
	path := filepath.Join(t.TempDir(), "outbox.db")
	store := newStore(t, open(t, path))
	require.NoError(t, store.Migrate(t.Context()))
	ctx, cancel := context.WithCancel(t.Context())
	woken, ended := make(chan struct{}, 100), make(chan error, 1)
	go func() { ended <- store.Notify(ctx, func() { woken <- struct{}{} }) }()
	<-woken // the first look
	save(t, newStore(t, open(t, path)), "topic", "x")
	<-woken
	cancel()
	require.NoError(t, <-ended)

	single := open(t, path)
	single.SetMaxOpenConns(1)
	require.ErrorContains(t, newStore(t, single).Notify(t.Context(), func() {}), "one connection")
}

func TestStore_ReadsTheDatabaseByItsIndexes(t *testing.T) {
	_, db := migrated(t)
	entries, err := os.ReadDir("queries")
	require.NoError(t, err)
	for _, analysed := range []bool{false, true} {
		if analysed {
			_, err := db.Exec("ANALYZE")
			require.NoError(t, err)
		}
		for _, e := range entries {
			if e.Name() == "stats.sql" || e.Name() == "stats_topics.sql" || e.Name() == "check.sql" ||
				strings.HasPrefix(e.Name(), "slots_") {
				continue // they look at everything, or at one row
			}
			text, err := os.ReadFile(filepath.Join("queries", e.Name()))
			require.NoError(t, err)
			for _, step := range plan(t, db, string(text)) {
				if strings.HasPrefix(step, "SCAN") && !strings.Contains(step, "VIRTUAL TABLE") &&
					!strings.Contains(step, "outbox_archive_failed_idx") {
					t.Errorf("%s: %s", e.Name(), step)
				}
				if strings.Contains(step, "TEMP B-TREE FOR ORDER BY") {
					t.Errorf("%s: %s", e.Name(), step)
				}
			}
		}
	}
}

func plan(t *testing.T, db *sql.DB, statement string) (steps []string) {
	t.Helper()
	rows, err := db.Query("EXPLAIN QUERY PLAN "+statement, make([]any, parameters(statement))...)
	require.NoError(t, err, statement)
	defer func() { require.NoError(t, rows.Close()) }()
	for rows.Next() {
		var id, parent, unused int
		var detail string
		require.NoError(t, rows.Scan(&id, &parent, &unused, &detail))
		steps = append(steps, detail)
	}
	require.NoError(t, rows.Err())
	return steps
}

// parameters counts those of a statement, which are numbered or not.
func parameters(statement string) int {
	for n := 9; n > 0; n-- {
		if strings.Contains(statement, "?"+strconv.Itoa(n)) {
			return n
		}
	}
	return strings.Count(statement, "?")
}

func TestStore_ThatOnlyPublishesAndHandles_StartsNoGoroutine(t *testing.T) {
	store, db := migrated(t)
	db.SetMaxIdleConns(2)
	before := runtime.NumGoroutine()
	for range 10 {
		save(t, store, "topic", "x")
		_, err := store.Processed().MarkProcessed(t.Context(), nil, "group", watermill.NewUUID(), nil)
		require.NoError(t, err)
	}
	// The goroutine that database/sql keeps for each transaction ends a little after it.
	for deadline := time.Now().Add(30 * time.Second); runtime.NumGoroutine() > before; runtime.Gosched() {
		require.True(t, time.Now().Before(deadline), "%d goroutines, %d before", runtime.NumGoroutine(), before)
	}
}
