// Package anybytes publishes messages of any bytes: each arrives as it was, or Publish refuses it.
package anybytes_test

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/components/delay"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/internal/pgtest"
	"github.com/watermill-outbox/outbox/store/pgxstore"
	"github.com/watermill-outbox/outbox/store/postgres"
	"github.com/watermill-outbox/outbox/store/sqlite"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// parcel is what a message is made of.
type parcel struct {
	topic, key, uuid, name, value string // the latter two of metadata
	payload                       []byte
}

// awkward is what databases, encodings and statements may stumble over.
var awkward = []string{
	"", " ", "\x00", "a\x00b", "\xff", "a\xffb", "\xed\xa0\x80", "\xc0\x80", "\xf4\x90\x80\x80", "\ufeff", "\ufffd", "\u2028",
	"e\u0301", "\u00e9", "\U0001f600", "\n", "\r\n", "\t", "\x1f", "\x7f", "\x1a", `\`, `\\`, `\x00`, `\u0000`, `\000`, "NULL", "null", "true",
	"0", "007", "-1", "1e400", "NaN", "{}", "[]", `{"a":1}`, `{NULL,"a"}`, `","`, `"`, `'`, `''`, "`", "$1", "$$", "?", "?1", ":a", "@a", "%s",
	"--", "/*", "*/", ";", "'; DROP TABLE outbox_messages; --", `"; DROP TABLE outbox_messages; --`, `\'; DROP TABLE outbox_messages; --`,
	strings.Repeat("k", outbox.MaxTopicLength), strings.Repeat("k", outbox.MaxTopicLength+1),
	strings.Repeat("k", outbox.MaxKeyLength), strings.Repeat("k", outbox.MaxKeyLength+1),
	strings.Repeat("\u00e9", outbox.MaxKeyLength/2), strings.Repeat("\u00e9", outbox.MaxKeyLength/2) + "k",
	strings.Repeat("k", 1<<20),
}

// parcels have each of the awkward strings in each place.
func parcels() (all []parcel) {
	for _, s := range awkward {
		for place := range 6 {
			p := parcel{"topic", "key", "uuid", "name", "value", []byte("payload")}
			for i, field := range []*string{&p.topic, &p.key, &p.uuid, &p.name, &p.value} {
				if i == place {
					*field = s
				}
			}
			if place == 5 {
				p.payload = []byte(s)
			}
			all = append(all, p)
		}
	}
	return all
}

// refused tells what Publish documents: a topic of 1 to 255 bytes, a key and a UUID of up to 512, all of them text without
// NUL; and metadata that are text.
func (p parcel) refused() bool {
	isText := func(s string) bool { return utf8.ValidString(s) && !strings.Contains(s, "\x00") }
	return p.topic == "" || len(p.topic) > 255 || len(p.key) > 512 || len(p.uuid) > 512 ||
		!isText(p.topic) || !isText(p.key) || !isText(p.uuid) || !utf8.ValidString(p.name) || !utf8.ValidString(p.value)
}

// reserved are the names of metadata that mean something to the outbox.
var reserved = []string{"_outbox_key", delay.DelayedForKey, delay.DelayedUntilKey}

func (p parcel) message() *message.Message {
	msg := message.NewMessage(p.uuid, p.payload)
	msg.Metadata.Set(p.name, p.value)
	outbox.SetKey(msg, p.key)
	return msg
}

// route is an outbox, and a way from it to its own shelf.
type route struct {
	store     transactor
	publisher *outbox.Publisher
	forwarder *outbox.Forwarder

	mu    sync.Mutex
	shelf map[string][]*message.Message // by topic
}

type transactor interface {
	outbox.LeasedStore
	outbox.Transactor
	Migrate(ctx context.Context) error
	Close() error
}

func newRoute(tb testing.TB, store transactor) *route {
	tb.Helper()
	tb.Cleanup(func() { require.NoError(tb, store.Close()) })
	require.NoError(tb, store.Migrate(context.Background()))
	r := &route{store: store}
	var err error
	r.publisher, err = outbox.NewPublisher(store)
	require.NoError(tb, err)
	r.forwarder, err = outbox.NewForwarder(store, r, outbox.WithLogger(watermill.NopLogger{}))
	require.NoError(tb, err)
	return r
}

// Publish puts messages on the shelf.
func (r *route) Publish(topic string, msgs ...*message.Message) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.shelf[topic] = append(r.shelf[topic], msgs...)
	return nil
}

func (r *route) Close() error { return nil }

const companion = "its companion in one Publish call"

// send publishes the parcel, together with another message, and commits whatever becomes of that.
func (r *route) send(p parcel) (publishErr, err error) {
	err = r.store.RunInTx(context.Background(), func(ctx context.Context, _ any) error {
		msgs := []*message.Message{message.NewMessage("", []byte(companion)), p.message()}
		for _, msg := range msgs {
			msg.SetContext(ctx)
		}
		publishErr = r.publisher.Publish(p.topic, msgs...)
		return nil
	})
	return publishErr, err
}

// check checks that both messages arrive byte for byte, or none does and the error is the documented one.
func (r *route) check(t *testing.T, p parcel) {
	t.Helper()
	r.shelf = map[string][]*message.Message{}
	refusal, err := r.send(p)
	require.NoError(t, err)
	n, err := r.forwarder.Drain(t.Context())
	require.NoError(t, err)
	if p.refused() {
		require.ErrorIs(t, refusal, outbox.ErrInvalidMessage)
		require.Zero(t, n, "messages of a Publish call that failed")
		return
	}
	require.NoError(t, refusal)
	require.Equal(t, 2, n)
	arrived := r.shelf[p.topic]
	require.Len(t, arrived, 2, "under its topic %q: %v", p.topic, slices.Collect(maps.Keys(r.shelf)))
	at := slices.IndexFunc(arrived, func(m *message.Message) bool { return string(m.Payload) != companion })
	require.GreaterOrEqual(t, at, 0, "its payload")
	got := arrived[at]
	require.Equal(t, p.payload, append([]byte{}, got.Payload...))
	require.Equal(t, p.key, outbox.Key(got))
	if p.uuid == "" {
		require.NotEmpty(t, got.UUID)
	} else {
		require.Equal(t, p.uuid, got.UUID)
	}
	outbox.SetKey(got, "")
	require.Equal(t, message.Metadata{p.name: p.value}, got.Metadata)
}

// Any bytes arrive as they were, or are refused, on SQLite.
func FuzzPublish(f *testing.F) {
	db, err := sqlite.Open(f.TempDir() + "/outbox.db?_synchronous=OFF")
	require.NoError(f, err)
	f.Cleanup(func() { require.NoError(f, db.Close()) })
	store, err := sqlite.New(db)
	require.NoError(f, err)
	r := newRoute(f, store)
	for _, p := range parcels() {
		f.Add(p.topic, p.key, p.uuid, p.name, p.value, p.payload)
	}
	f.Fuzz(func(t *testing.T, topic, key, uuid, name, value string, payload []byte) {
		if slices.Contains(reserved, name) || string(payload) == companion {
			t.Skip("it means something else")
		}
		r.check(t, parcel{topic, key, uuid, name, value, append([]byte{}, payload...)})
	})
}

// Any bytes arrive as they were, or are refused, on PostgreSQL, through both drivers' ways of passing arrays.
func TestPublish_DeliversAnyBytesOrRefusesThem_OnPostgreSQL(t *testing.T) {
	for name, open := range map[string]func(t *testing.T) (transactor, error){
		"pgxstore": func(t *testing.T) (transactor, error) {
			pool, err := pgxpool.New(t.Context(), pgtest.V15.URL())
			require.NoError(t, err)
			t.Cleanup(pool.Close)
			return pgxstore.New(pool, pgxstore.WithSchema(pgtest.Schema(t, pgtest.V15)))
		},
		"postgres": func(t *testing.T) (transactor, error) {
			pool, err := pgxpool.New(t.Context(), pgtest.V15.URL())
			require.NoError(t, err)
			t.Cleanup(pool.Close)
			db := stdlib.OpenDBFromPool(pool)
			t.Cleanup(func() { require.NoError(t, db.Close()) })
			return postgres.New(db, postgres.WithSchema(pgtest.Schema(t, pgtest.V15)))
		},
	} {
		if testing.Short() && name != "pgxstore" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			store, err := open(t)
			require.NoError(t, err)
			r := newRoute(t, store)
			for _, p := range parcels() {
				r.check(t, p)
			}
		})
	}
}
