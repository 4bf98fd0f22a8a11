// Package store_test tests what holds for every store on a SQL database and is no part of storetest's contract: whoever
// writes a store of his own cannot be held to it.
package store_test

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
	"unsafe"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"
	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"
	_ "github.com/lib/pq"              // the driver "postgres"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/internal/pgtest"
	"github.com/watermill-outbox/outbox/migrations"
	"github.com/watermill-outbox/outbox/store/pgxstore"
	"github.com/watermill-outbox/outbox/store/postgres"
	"github.com/watermill-outbox/outbox/store/sqlite"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// hostile are texts that mean something to a database, a driver, an array literal, JSON or fmt.
var hostile = []string{
	`'; DROP TABLE canary; --`, `"; DROP TABLE canary; --`, `'); DELETE FROM canary; --`, `\'; DROP TABLE canary; --`,
	`' OR '1'='1`, `$$; DROP TABLE canary; $$`, `1; DROP TABLE canary`, `x'::text; DROP TABLE canary; SELECT '`,
	`'`, `''`, `"`, `""`, "`", `\`, `\\`, `\'`, `\"`, `$1`, `$7`, `$a$`, `?`, `?1`, `:a`, `@a`, `%s%d%n`, `%%`,
	`;`, `--`, `/*`, `*/`, `E'\x27'`, `U&'\0027'`, `\x41`, `\N`, `\.`,
	`NULL`, `null`, `{}`, `{NULL}`, `},{`, `","`, `{"a":"b"}`, `[]`, `"]`, `"}`, `,`,
	`outbox_messages`, `"outbox_messages"`, `main.outbox_messages`,
	"\u02bc; DROP TABLE canary", "\uff07; DROP TABLE canary", "\u2019", "e\u0301", "\u2028", "\ufeff", "\u202e", "\U0001F4A9", "\ufffd",
	" ", " before", "after ", "\t", "\n", "a\r\nb", "\x01", "\x1b[31m", "\x7f",
	// No text to every database.
	"\x00", "a\x00'; DROP TABLE canary; --", "\xff", "\xbf'; DROP TABLE canary; --", "\xed\xa0\x80",
}

// isText tells whether every database can keep s as a text.
func isText(s string) bool { return utf8.ValidString(s) && !strings.Contains(s, "\x00") }

// sqlStore is what the stores have in common.
type sqlStore interface {
	outbox.LeasedStore
	outbox.Inspector
	outbox.StatsReporter
	outbox.TopicPauser
	outbox.Transactor
	Migrate(ctx context.Context) error
	Close() error
}

type processedStore interface {
	outbox.ProcessedStore
	outbox.Transactor
}

// target is a store, beside a table of the application's own.
type target struct {
	sqlStore
	processed processedStore
	db        *sql.DB // its tables are there without a schema
	driver    string  // as package migrations calls it
	schema    string  // empty where there are none
	listed    string  // the statement that lists the tables
	// open makes another store, over the same database.
	open func(schema, prefix string) (sqlStore, error)
}

const leaseTTL = 10 * time.Second

var targets = map[string]func(t *testing.T) *target{
	"sqlite":      sqliteTarget,
	"pgxstore/15": func(t *testing.T) *target { t.Helper(); return pgxTarget(t, pgtest.V15, "") },
	"pgxstore/18": func(t *testing.T) *target { t.Helper(); return pgxTarget(t, pgtest.V18, "") },
	"pgxstore/18/simple protocol": func(t *testing.T) *target {
		t.Helper()
		return pgxTarget(t, pgtest.V18, "&default_query_exec_mode=simple_protocol")
	},
	"pgxstore/18/exec": func(t *testing.T) *target {
		t.Helper()
		return pgxTarget(t, pgtest.V18, "&default_query_exec_mode=exec")
	},
	"postgres/15/pgx": func(t *testing.T) *target { t.Helper(); return sqlTarget(t, pgtest.V15, "pgx", "") },
	"postgres/15/pq": func(t *testing.T) *target {
		t.Helper()
		return sqlTarget(t, pgtest.V15, "postgres", "&sslmode=disable")
	},
	"postgres/18/pq/binary": func(t *testing.T) *target {
		t.Helper()
		return sqlTarget(t, pgtest.V18, "postgres", "&sslmode=disable&binary_parameters=yes")
	},
}

// forTargets runs test with each of them; in a short run, with a store on each database.
func forTargets(t *testing.T, test func(t *testing.T, w *target)) {
	t.Helper()
	for name, open := range targets {
		if testing.Short() && name != "sqlite" && name != "pgxstore/15" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, open(t))
		})
	}
}

func sqliteTarget(t *testing.T) *target {
	t.Helper()
	db, err := sqlite.Open(filepath.Join(t.TempDir(), "app.db"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	w := &target{
		db: db, driver: "sqlite3",
		listed: "SELECT group_concat(name) FROM (SELECT name FROM sqlite_master ORDER BY name)",
		open: func(_, prefix string) (sqlStore, error) {
			return stored(sqlite.New(db, sqlite.WithPrefix(prefix), sqlite.WithLeaseTTL(leaseTTL)))
		},
	}
	w.begin(t)
	w.processed = w.sqlStore.(*sqlite.Store).Processed()
	return w
}

func pgxTarget(t *testing.T, server pgtest.Server, params string) *target {
	t.Helper()
	w := postgresTarget(t, server, "pgx", "")
	pool, err := pgxpool.New(t.Context(), server.URL()+"?search_path="+w.schema+params)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	w.open = func(schema, prefix string) (sqlStore, error) {
		schema = cmp.Or(schema, w.schema)
		return stored(pgxstore.New(pool, pgxstore.WithSchema(schema), pgxstore.WithPrefix(prefix), pgxstore.WithLeaseTTL(leaseTTL)))
	}
	w.begin(t)
	w.processed = w.sqlStore.(*pgxstore.Store).Processed()
	return w
}

func sqlTarget(t *testing.T, server pgtest.Server, driver, params string) *target {
	t.Helper()
	w := postgresTarget(t, server, driver, params)
	w.open = func(schema, prefix string) (sqlStore, error) {
		schema = cmp.Or(schema, w.schema)
		return stored(postgres.New(w.db, postgres.WithSchema(schema), postgres.WithPrefix(prefix), postgres.WithLeaseTTL(leaseTTL)))
	}
	w.begin(t)
	w.processed = w.sqlStore.(*postgres.Store).Processed()
	return w
}

func postgresTarget(t *testing.T, server pgtest.Server, driver, params string) *target {
	t.Helper()
	schema := pgtest.Schema(t, server)
	db, err := sql.Open(driver, server.URL()+"?search_path="+schema+params)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	return &target{
		db: db, driver: driver, schema: schema,
		listed: "SELECT string_agg(relname, ',' ORDER BY relname) FROM pg_class WHERE relnamespace = to_regnamespace(current_schema())",
	}
}

// stored keeps a nil pointer from becoming a store.
func stored[S sqlStore](s S, err error) (sqlStore, error) {
	if err != nil {
		return nil, err
	}
	return s, nil
}

// begin makes the tables, and the store that is tested.
func (w *target) begin(t *testing.T) {
	t.Helper()
	var err error
	w.sqlStore, err = w.open("", "")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, w.Close()) })
	require.NoError(t, w.Migrate(t.Context()))
	for _, statement := range []string{
		"CREATE TABLE canary (note text NOT NULL)", "INSERT INTO canary (note) VALUES ('sings'), ('hops'), ('sleeps')",
	} {
		_, err := w.db.ExecContext(t.Context(), statement)
		require.NoError(t, err)
	}
	msgs, err := w.Claim(t.Context(), 1, 1) // takes the slots
	require.NoError(t, err)
	require.Empty(t, msgs)
}

// look tells which tables there are, and what is in them.
func (w *target) look(t *testing.T) string {
	t.Helper()
	var tables string
	require.NoError(t, w.db.QueryRowContext(t.Context(), w.listed).Scan(&tables))
	for _, table := range []string{"canary", "outbox_messages", "outbox_archive", "outbox_slots", "outbox_processed"} {
		var n int
		require.NoError(t, w.db.QueryRowContext(t.Context(), "SELECT count(*) FROM "+table).Scan(&n))
		tables += fmt.Sprintf(" %s:%d", table, n)
	}
	return tables
}

// claim returns the next n messages.
func (w *target) claim(t *testing.T, n int) (claimed []outbox.Message) {
	t.Helper()
	for end := time.Now().Add(time.Minute); len(claimed) < n; time.Sleep(time.Millisecond) {
		msgs, err := w.Claim(t.Context(), n-len(claimed), 1<<20)
		require.NoError(t, err)
		claimed = append(claimed, msgs...)
		require.True(t, time.Now().Before(end), "%d of %d messages", len(claimed), n)
	}
	return claimed
}

// A text of a user's arrives byte for byte, or is refused by an error that is documented; and it does nothing else.
func TestStores_TakeHostileTextsForTexts(t *testing.T) {
	t.Parallel()
	forTargets(t, func(t *testing.T, w *target) {
		t.Helper()
		for _, s := range hostile {
			t.Run(strconv.QuoteToASCII(s), func(t *testing.T) {
				before := w.look(t)
				if isText(s) {
					w.relays(t, s)
				} else {
					w.refuses(t, s)
				}
				require.Equal(t, before, w.look(t))
				w.finds(t, s)
				w.handles(t, s)
				require.Equal(t, before, w.look(t))
			})
		}
	})
}

// relays takes a message that is made of s through all that may happen to it.
func (w *target) relays(t *testing.T, s string) {
	t.Helper()
	ctx := t.Context()
	publisher, err := outbox.NewPublisher(w.sqlStore, outbox.WithOwnTx())
	require.NoError(t, err)
	made := func() *message.Message {
		msg := message.NewMessage(s, []byte(s))
		msg.Metadata = message.Metadata{s: s, "a" + s: s}
		outbox.SetKey(msg, s)
		return msg
	}
	require.NoError(t, publisher.Publish(s, made()))
	require.NoError(t, publisher.Publish(s, made(), made())) // another statement
	stats, err := w.Stats(ctx)
	require.NoError(t, err)
	require.Equal(t, map[string]int64{s: 3}, stats.PendingByTopic)
	w.PauseTopics(s)
	none, err := w.Claim(ctx, 10, 1<<20)
	require.NoError(t, err)
	require.Empty(t, none)
	w.PauseTopics()

	claimed := w.claim(t, 3)
	for _, m := range claimed {
		requireMadeOf(t, s, m)
	}
	require.NoError(t, w.Settle(ctx,
		outbox.Outcome{ID: claimed[0].ID, Status: outbox.StatusProcessed, Archive: true},
		outbox.Outcome{ID: claimed[1].ID, Status: outbox.StatusFailed, Err: errors.New(s)},
		outbox.Outcome{ID: claimed[2].ID, Status: outbox.StatusPending, Err: errors.New(s)},
	))
	retried := w.claim(t, 1)[0]
	requireMadeOf(t, s, retried)
	require.Equal(t, s, retried.LastError)
	require.NoError(t, w.Settle(ctx, outbox.Outcome{ID: retried.ID, Status: outbox.StatusProcessed}))

	failed := w.setAside(t, s)
	n, err := w.Requeue(ctx, failed.ID)
	require.NoError(t, err)
	require.EqualValues(t, 1, n)
	requeued := w.claim(t, 1)[0]
	requireMadeOf(t, s, requeued)
	require.NoError(t, w.Settle(ctx, outbox.Outcome{ID: requeued.ID, Status: outbox.StatusFailed, Err: errors.New(s)}))
	n, err = w.Discard(ctx, w.setAside(t, s).ID)
	require.NoError(t, err)
	require.EqualValues(t, 1, n)
	n, err = w.DeleteProcessedBefore(ctx, time.Now().Add(time.Hour))
	require.NoError(t, err)
	require.EqualValues(t, 1, n)
}

func requireMadeOf(t *testing.T, s string, m outbox.Message) {
	t.Helper()
	require.Equal(t, []string{s, s, s, s}, []string{m.UUID, m.Topic, m.Key, string(m.Payload)})
	require.Equal(t, map[string]string{s: s, "a" + s: s}, m.Headers)
}

// setAside returns the one message that is.
func (w *target) setAside(t *testing.T, s string) outbox.Message {
	t.Helper()
	failed, err := w.ListFailed(t.Context(), "", 10)
	require.NoError(t, err)
	require.Len(t, failed, 1)
	requireMadeOf(t, s, failed[0])
	require.Equal(t, s, failed[0].LastError)
	return failed[0]
}

// refuses publishes what is no text to every database, which only the payload, the text of an error, and in part the
// metadata may be.
func (w *target) refuses(t *testing.T, s string) {
	t.Helper()
	ctx := t.Context()
	publisher, err := outbox.NewPublisher(w.sqlStore, outbox.WithOwnTx())
	require.NoError(t, err)
	key := message.NewMessage("u", nil)
	outbox.SetKey(key, s)
	require.ErrorIs(t, publisher.Publish(s, message.NewMessage("u", nil)), outbox.ErrInvalidMessage)
	require.ErrorIs(t, publisher.Publish("t", message.NewMessage(s, nil)), outbox.ErrInvalidMessage)
	require.ErrorIs(t, publisher.Publish("t", key), outbox.ErrInvalidMessage)
	fine := message.NewMessage("u", []byte(s))
	fine.Metadata = message.Metadata{s: s}
	if !utf8.ValidString(s) {
		for _, metadata := range []message.Metadata{{s: "v"}, {"k": s}} {
			msg := message.NewMessage("u", nil)
			msg.Metadata = metadata
			require.ErrorIs(t, publisher.Publish("t", msg), outbox.ErrInvalidMessage)
		}
		fine.Metadata = nil
	}
	require.NoError(t, publisher.Publish("t", fine))
	claimed := w.claim(t, 1)[0]
	require.Equal(t, s, string(claimed.Payload))
	require.Len(t, claimed.Headers, len(fine.Metadata))
	require.Equal(t, fine.Metadata[s], claimed.Headers[s])
	require.NoError(t, w.Settle(ctx, outbox.Outcome{ID: claimed.ID, Status: outbox.StatusFailed, Err: errors.New(s)}))
	failed, err := w.ListFailed(ctx, "", 10)
	require.NoError(t, err)
	require.Len(t, failed, 1)
	readable := strings.ReplaceAll(strings.ToValidUTF8(s, "\ufffd"), "\x00", "\ufffd")
	require.Equal(t, readable, failed[0].LastError)
	_, err = w.Discard(ctx, failed[0].ID)
	require.NoError(t, err)
}

// finds asks for messages whose id is s. There are none.
func (w *target) finds(t *testing.T, s string) {
	t.Helper()
	ctx := t.Context()
	_, err := w.ListFailed(ctx, s, 10)
	require.ErrorContains(t, err, "is not the id of a message")
	_, err = w.Requeue(ctx, s)
	require.ErrorContains(t, err, "is not the id of a message")
	_, err = w.Discard(ctx, s)
	require.ErrorContains(t, err, "is not the id of a message")
	require.ErrorIs(t, w.MarkProcessed(ctx, s), outbox.ErrNotClaimed)
	require.ErrorIs(t, w.MarkFailed(ctx, s, errors.New(s)), outbox.ErrNotClaimed)
	require.ErrorIs(t, w.Settle(ctx, outbox.Outcome{ID: s, Status: outbox.StatusProcessed}), outbox.ErrNotClaimed)
	require.NoError(t, w.Release(ctx, s))
	require.False(t, w.Owned(s))
}

// handles records s as a group, as the id of a message and in its metadata.
func (w *target) handles(t *testing.T, s string) {
	t.Helper()
	ctx := t.Context()
	metadata, err := json.Marshal(s)
	require.NoError(t, err)
	for _, want := range []bool{true, false} {
		isNew, err := w.processed.MarkProcessed(ctx, nil, s, s, metadata)
		require.NoError(t, err)
		require.Equal(t, want, isNew)
	}
	for _, c := range []struct {
		group, id string
		want      bool
	}{{s, s, true}, {s, s + s, false}, {s + s, s, false}, {"g", s, false}, {s, "m", false}} {
		marked, err := w.processed.IsProcessed(ctx, nil, c.group, c.id)
		require.NoError(t, err)
		require.Equal(t, c.want, marked, "%q %q", c.group, c.id)
	}
	var group, id, text string
	require.NoError(t, w.db.QueryRowContext(ctx,
		"SELECT consumer_group, message_id, CAST(metadata AS text) FROM outbox_processed").Scan(&group, &id, &text))
	if isText(s) {
		require.Equal(t, []string{s, s}, []string{group, id})
	} else {
		require.Regexp(t, "^sha256:[0-9a-f]{64}$", group)
		require.Equal(t, group, id)
	}
	require.JSONEq(t, string(metadata), text)
	if !json.Valid([]byte(s)) {
		_, err = w.processed.MarkProcessed(ctx, nil, "g", "m", json.RawMessage(s))
		require.ErrorContains(t, err, "not valid JSON")
	}

	marks := int64(1)
	dedup, err := outbox.NewDeduplicator(w.processed, s)
	if strings.Contains(s, "/") {
		require.ErrorContains(t, err, "contains a slash")
	} else {
		require.NoError(t, err)
		calls := 0
		handle := dedup.Middleware(func(*message.Message) ([]*message.Message, error) { calls++; return nil, nil })
		for range 2 {
			_, err := handle(message.NewMessage("m"+s, []byte(s)))
			require.NoError(t, err)
		}
		require.Equal(t, 1, calls)
		marks++
	}
	n, err := w.processed.PurgeProcessedBefore(ctx, nil, time.Now().Add(time.Hour))
	require.NoError(t, err)
	require.Equal(t, marks, n)
}

var identifier = regexp.MustCompile(`^[A-Za-z_]+$`)

// What becomes a part of statements is refused unless it is letters, digits and underscores.
func TestStores_RefuseHostileNames(t *testing.T) {
	t.Parallel()
	forTargets(t, func(t *testing.T, w *target) {
		t.Helper()
		ctx, before := t.Context(), w.look(t)
		for _, s := range hostile {
			if identifier.MatchString(s) {
				continue // below
			}
			const refusal = "letters, digits and underscores"
			_, err := w.open("", s)
			require.ErrorContains(t, err, refusal, "%q", s)
			options := map[string][]migrations.Option{"prefix": {migrations.WithSchema(w.schema), migrations.WithPrefix(s)}}
			if w.schema != "" {
				_, err := w.open(s, "")
				require.ErrorContains(t, err, refusal, "%q", s)
				options["schema"] = []migrations.Option{migrations.WithSchema(s)}
			}
			for what, opts := range options {
				require.ErrorContains(t, migrations.Up(ctx, w.db, w.driver, opts...), refusal, "%s %q", what, s)
				require.ErrorContains(t, migrations.Down(ctx, w.db, w.driver, opts...), refusal, "%s %q", what, s)
				_, err = migrations.Version(ctx, w.db, w.driver, opts...)
				require.ErrorContains(t, err, refusal, "%s %q", what, s)
				_, err = migrations.SQL(w.driver, 0, 1, opts...)
				require.ErrorContains(t, err, refusal, "%s %q", what, s)
			}
			require.ErrorContains(t, migrations.Up(ctx, w.db, s), "no migrations for the driver", "%q", s)
			require.ErrorContains(t, migrations.Down(ctx, w.db, s), "no migrations for the driver", "%q", s)
		}
		require.Equal(t, before, w.look(t))
	})
}

// Names that are words of the language, or of the outbox, are names.
func TestStores_TakeWordsForNames(t *testing.T) {
	t.Parallel()
	forTargets(t, func(t *testing.T, w *target) {
		t.Helper()
		before := w.look(t)
		for _, prefix := range []string{"NULL", "select", "user_", "outbox_", "outbox_messages", "x_idx", "_", "Quoted"} {
			store, err := w.open("", prefix)
			require.NoError(t, err)
			other := &target{sqlStore: store}
			require.NoError(t, other.Migrate(t.Context()), prefix)
			require.Contains(t, w.look(t), prefix+"outbox_messages") // as it is written
			require.NoError(t, other.Save(t.Context(), nil, outbox.Message{Topic: "t", UUID: "u"}))
			claimed := other.claim(t, 1)[0]
			require.NoError(t, other.Settle(t.Context(), outbox.Outcome{ID: claimed.ID, Status: outbox.StatusFailed, Err: errors.New("x")}))
			n, err := other.Requeue(t.Context(), claimed.ID)
			require.NoError(t, err)
			require.EqualValues(t, 1, n)
			require.NoError(t, other.Close())
			require.NoError(t, migrations.Down(t.Context(), w.db, w.driver, migrations.WithSchema(w.schema), migrations.WithPrefix(prefix)))
			require.Equal(t, before, w.look(t), prefix)
		}
	})
}

// An instance is named after its host, whose name nobody checks.
func TestStores_TakeAHostileHostNameForAText(t *testing.T) {
	t.Parallel()
	forTargets(t, func(t *testing.T, w *target) {
		t.Helper()
		before := w.look(t)
		require.NoError(t, w.Release(t.Context()))
		for _, s := range hostile[:8] {
			store, err := w.open("", "")
			require.NoError(t, err)
			setOwner(store, s)
			_, err = store.Claim(t.Context(), 1, 1)
			require.NoError(t, err)
			all := w.owned(t, s)
			require.Positive(t, all)
			if w.schema != "" { // another instance gets half of them
				_, err := w.db.ExecContext(t.Context(), "INSERT INTO outbox_relays VALUES ($1, clock_timestamp() + interval '1 hour')", s+s)
				require.NoError(t, err)
				for end := time.Now().Add(time.Minute); w.owned(t, s) > all/2; time.Sleep(10 * time.Millisecond) {
					_, err := store.Claim(t.Context(), 1, 1)
					require.NoError(t, err)
					require.True(t, time.Now().Before(end))
				}
				_, err = w.db.ExecContext(t.Context(), "DELETE FROM outbox_relays WHERE name = $1", s+s)
				require.NoError(t, err)
			}
			require.NoError(t, store.Close())
			require.Zero(t, w.owned(t, s))
			require.Equal(t, before, w.look(t))
		}
	})
}

func (w *target) owned(t *testing.T, owner string) (n int) {
	t.Helper()
	require.NoError(t, w.db.QueryRowContext(t.Context(), "SELECT count(*) FROM outbox_slots WHERE owner = $1", owner).Scan(&n))
	return n
}

// setOwner sets what no option does.
func setOwner(store sqlStore, owner string) {
	field := reflect.ValueOf(store).Elem().FieldByName("engine").Elem().FieldByName("owner")
	*(*string)(unsafe.Pointer(field.UnsafeAddr())) = owner
}
