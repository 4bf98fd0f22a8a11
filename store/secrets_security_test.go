package store_test

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/components/delay"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/internal/pgtest"
	"github.com/watermill-outbox/outbox/store/pgxstore"
	"github.com/watermill-outbox/outbox/store/postgres"
	"github.com/watermill-outbox/outbox/store/sqlite"
)

// listener collects all that is logged, with every field, as the usual handlers print it; all errors; and of events what is
// not the message itself.
type listener struct {
	secret string

	mu   sync.Mutex
	text strings.Builder
	json *slog.Logger
}

func newListener() *listener {
	l := &listener{secret: "s3cr3t" + rand.Text()}
	l.json = slog.New(slog.NewJSONHandler(&l.text, &slog.HandlerOptions{Level: slog.LevelDebug}))
	return l
}

func (l *listener) Error(msg string, err error, fields watermill.LogFields) { l.line(msg, err, fields) }

func (l *listener) Info(msg string, fields watermill.LogFields) { l.line(msg, nil, fields) }

func (l *listener) Debug(msg string, fields watermill.LogFields) { l.line(msg, nil, fields) }

func (l *listener) Trace(msg string, fields watermill.LogFields) { l.line(msg, nil, fields) }

func (l *listener) With(fields watermill.LogFields) watermill.LoggerAdapter {
	l.line("with", nil, fields)
	return l
}

func (l *listener) line(msg string, err error, fields watermill.LogFields) {
	l.mu.Lock()
	defer l.mu.Unlock()
	args := []any{"error", err}
	for k, v := range fields {
		args = append(args, k, v)
	}
	l.json.Info(msg, args...)
	_, _ = fmt.Fprintf(&l.text, "%s %v %+v %v %+v\n", msg, err, err, fields, fields)
}

// note takes an error that was returned.
func (l *listener) note(err error) { l.line("returned", err, nil) }

// Observe implements outbox.Observer.
func (l *listener) Observe(_ context.Context, event outbox.Event) {
	v := reflect.ValueOf(event)
	for i := range v.NumField() {
		switch name := v.Type().Field(i).Name; name {
		case "Message", "Messages": // are whole, as the documentation says
		default:
			l.line(fmt.Sprintf("%T", event), nil, watermill.LogFields{name: v.Field(i).Interface()})
		}
	}
}

func (l *listener) heard(what string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.text.String(), what)
}

// tail is the last of what it has heard.
func (l *listener) tail() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := l.text.String()
	return text[max(0, len(text)-3000):]
}

// await waits until it has heard all of this: otherwise a test would prove nothing.
func (l *listener) await(t *testing.T, all ...string) {
	t.Helper()
	for _, what := range all {
		if !assert.Eventually(t, func() bool { return l.heard(what) }, time.Minute, time.Millisecond, "not heard: %s", what) {
			t.Log(l.tail())
			t.FailNow()
		}
	}
}

// requireSilence fails if the secret was heard, in whatever encoding.
func (l *listener) requireSilence(t *testing.T) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	text := l.text.String()
	for _, form := range []string{
		l.secret, strings.ToLower(l.secret), hex.EncodeToString([]byte(l.secret)), url.QueryEscape(l.secret),
		base64.StdEncoding.EncodeToString([]byte(l.secret))[:20], strings.Trim(fmt.Sprintf("%d", []byte(l.secret)), "[]"),
	} {
		if at := strings.Index(text, form); at >= 0 {
			t.Fatalf("the secret was told: %s", text[max(0, at-300):min(len(text), at+len(form)+100)])
		}
	}
}

// message returns one whose payload and metadata are the secret.
func (l *listener) message(uuid string) *message.Message {
	msg := message.NewMessage(uuid, []byte(l.secret))
	msg.Metadata.Set("token", l.secret)
	outbox.SetKey(msg, "key of "+uuid)
	return msg
}

func (l *listener) publish(t *testing.T, store outbox.Store, topic string, uuids ...string) {
	t.Helper()
	publisher, err := outbox.NewPublisher(store, outbox.WithOwnTx())
	require.NoError(t, err)
	for _, uuid := range uuids {
		require.NoError(t, publisher.Publish(topic, l.message(uuid)))
	}
}

// forward runs a Forwarder until the returned function is called.
func (l *listener) forward(t *testing.T, store outbox.Store, publisher message.Publisher, opts ...outbox.Option) (stop func()) {
	t.Helper()
	f, err := outbox.NewForwarder(store, publisher, append([]outbox.Option{
		outbox.WithLogger(l), outbox.WithObserver(l), outbox.WithPollInterval(10 * time.Millisecond),
		outbox.WithRetryBackoff(time.Millisecond, 10*time.Millisecond), outbox.WithCloseTimeout(200 * time.Millisecond),
	}, opts...)...)
	require.NoError(t, err)
	var running sync.WaitGroup
	running.Go(func() { l.note(f.Run(context.WithoutCancel(t.Context()))) }) // ends at Close
	return func() {
		l.note(f.Close())
		running.Wait()
	}
}

// broker is a publisher.
type broker func(topic string, msg *message.Message) error

func (b broker) Publish(topic string, msgs ...*message.Message) error { return b(topic, msgs[0]) }
func (b broker) Close() error                                         { return nil }

var (
	errDown    = errors.New("the broker is down")
	errRefused = errors.New("the broker refuses it")
)

// printed is what a message of protobuf is: a fmt.Stringer that prints what it has.
type printed []byte

func (p printed) String() string { return "payload:" + string(p) }

// failsByTopic fails in the way that the topic names.
func failsByTopic(hang <-chan struct{}) broker {
	return func(topic string, msg *message.Message) error {
		switch topic {
		case "down":
			return errDown
		case "refused":
			return errRefused
		case "panics with the message":
			panic(msg)
		case "panics with its metadata":
			panic(msg.Metadata)
		case "panics with its payload":
			panic(msg.Payload)
		case "panics with what prints it":
			panic(printed(msg.Payload))
		case "exits":
			runtime.Goexit()
		case "hangs":
			<-hang
		}
		return nil
	}
}

// Whatever the broker's publisher does: what it says is told, and what it does not say is not.
func TestForwarder_NeverTellsAPayload_WhenThePublisherFails(t *testing.T) {
	t.Parallel()
	forTargets(t, func(t *testing.T, w *target) {
		t.Helper()
		l, hang := newListener(), make(chan struct{})
		topics := []string{
			"down", "refused", "panics with the message", "panics with its metadata", "panics with its payload",
			"panics with what prints it", "exits", "hangs", "fine",
		}
		for _, topic := range topics {
			l.publish(t, w.sqlStore, topic, topic+" 1", topic+" 2", topic+" 3", topic+" 4", topic+" 5", topic+" 6")
		}
		require.NoError(t, w.Release(t.Context())) // to be gained again
		stop := l.forward(t, w.sqlStore, failsByTopic(hang),
			outbox.WithPublishTimeout(50*time.Millisecond), outbox.WithRetention(time.Hour),
			outbox.WithPermanentError(func(err error) bool { return errors.Is(err, errRefused) }),
			outbox.WithObserver(outbox.ObserverFunc(func(ctx context.Context, event outbox.Event) {
				l.Observe(ctx, event)
				panic(event)
			})))
		l.await(
			t, errDown.Error(), "was set aside", "the publisher panicked", "the publisher panicked: a store_test.printed", "ended its goroutine", "does not return",
			"OutageBegunEvent", "This instance relays", "The Observer panicked", "outbox.PublishedEvent", "outbox.ClaimedEvent",
			// What is told of a message.
			"down 1", "key of down 1",
		)
		stop()
		close(hang)
		l.await(t, "close timeout exceeded")
		failed, err := w.ListFailed(t.Context(), "", 100)
		require.NoError(t, err)
		require.NotEmpty(t, failed)
		for _, m := range failed {
			l.note(errors.New(m.LastError))
		}
		l.requireSilence(t)
	})
}

// The publisher's own words are passed on, and kept, as docs/operations.md says: without them nobody could tell what is wrong.
func TestForwarder_PassesOnWhatThePublisherSays(t *testing.T) {
	w := sqliteTarget(t)
	l := newListener()
	l.publish(t, w.sqlStore, "errors", "errors")
	l.publish(t, w.sqlStore, "panics", "panics")
	stop := l.forward(t, w.sqlStore, broker(func(topic string, msg *message.Message) error {
		if topic == "panics" {
			panic("a panic of " + string(msg.Payload))
		}
		return fmt.Errorf("cannot encode %s: %w", msg.Payload, errRefused)
	}), outbox.WithPermanentError(func(err error) bool { return errors.Is(err, errRefused) }))
	l.await(t, "cannot encode "+l.secret, "the publisher panicked: a panic of "+l.secret)
	stop()
	failed, err := w.ListFailed(t.Context(), "", 10)
	require.NoError(t, err)
	require.Len(t, failed, 1)
	require.Equal(t, "cannot encode "+l.secret+": the broker refuses it", failed[0].LastError)
}

// damage is what somebody may have done to a row, for a database.
func (w *target) damage(secret string) []string {
	if w.schema == "" {
		return []string{
			"headers = '" + secret + "'", `headers = '{"a": ` + secret + "'", `headers = '["` + secret + `"]'`,
			`headers = '{"a": {"b": "` + secret + `"}}'`, `headers = '"` + secret + `"'`, "headers = x'" + hex.EncodeToString([]byte(secret+"\xff")) + "'",
			"retries = '" + secret + "'", "created_at = '" + secret + "'", "topic = ''",
		}
	}
	return []string{
		`headers = '["` + secret + `"]'`, `headers = '{"a": {"b": "` + secret + `"}}'`, `headers = '"` + secret + `"'`,
		`headers = '{"a": ["` + secret + `"]}'`, "headers = 'null'", "created_at = 'infinity'", "topic = ''",
	}
}

func TestForwarder_NeverTellsAPayload_WhenARowIsDamaged(t *testing.T) {
	t.Parallel()
	forTargets(t, func(t *testing.T, w *target) {
		t.Helper()
		l := newListener()
		damage := w.damage(l.secret)
		for i, set := range damage {
			uuid := fmt.Sprint("damaged ", i)
			l.publish(t, w.sqlStore, "topic", uuid)
			_, err := w.db.ExecContext(t.Context(), "UPDATE outbox_messages SET "+set+" WHERE uuid = $1", uuid)
			require.NoError(t, err, set)
		}
		stop := l.forward(t, w.sqlStore, broker(func(string, *message.Message) error { return nil }))
		var failed []outbox.Message
		require.Eventually(t, func() bool {
			var err error
			failed, err = w.ListFailed(t.Context(), "", 100)
			l.note(err)
			return len(failed) == len(damage)
		}, time.Minute, 10*time.Millisecond)
		stop()
		l.await(t, "the headers column of the row", "created_at", "the topic column of the row is empty", "damaged 0")
		for _, m := range failed {
			l.note(errors.New(m.LastError))
		}
		l.requireSilence(t)
	})
}

// refuse makes the database refuse rows of a topic in a table. On PostgreSQL the detail of the error has the row.
func (w *target) refuse(t *testing.T, topic, table string) {
	t.Helper()
	statement := "ALTER TABLE " + table + " ADD CONSTRAINT no_more CHECK (topic <> '" + topic + "')"
	if w.schema == "" {
		statement = "CREATE TRIGGER no_more BEFORE INSERT ON " + table + " WHEN NEW.topic = '" + topic + "' " +
			"BEGIN SELECT RAISE(ABORT, 'no_more'); END"
	}
	_, err := w.db.ExecContext(t.Context(), statement)
	require.NoError(t, err)
}

func TestForwarder_NeverTellsAPayload_WhenMarksFail(t *testing.T) {
	t.Parallel()
	forTargets(t, func(t *testing.T, w *target) {
		t.Helper()
		l := newListener()
		l.publish(t, w.sqlStore, "fine", "1", "2", "3")
		l.publish(t, w.sqlStore, "locked", "4")
		w.refuse(t, "locked", "outbox_archive")
		stop := l.forward(t, w.sqlStore, broker(func(string, *message.Message) error { return nil }), outbox.WithRetention(time.Hour))
		l.await(t, "Marking messages failed", "no_more", "A message cannot be marked")
		stop()
		l.await(t, "close timeout exceeded")
		l.requireSilence(t)
	})
}

func TestPublisher_NeverTellsAPayload_WhenItFails(t *testing.T) {
	t.Parallel()
	forTargets(t, func(t *testing.T, w *target) {
		t.Helper()
		l := newListener()
		own, err := outbox.NewPublisher(w.sqlStore, outbox.WithOwnTx())
		require.NoError(t, err)
		change := func(f func(msg *message.Message)) *message.Message {
			msg := l.message("u")
			f(msg)
			return msg
		}
		metadata := func(k, v string) *message.Message { return change(func(m *message.Message) { m.Metadata.Set(k, v) }) }
		ended, end := context.WithCancel(t.Context())
		end()
		publish := func(heard, topic string, msgs ...*message.Message) {
			err := own.Publish(topic, msgs...)
			require.ErrorContains(t, err, heard)
			l.note(err)
		}
		publish("the topic is empty", "", l.message("u"))
		publish("bytes, more than", strings.Repeat("t", 256), l.message("u"))
		publish("the topic is not valid UTF-8", "\xff", l.message("u"))
		publish("the key has", "t", change(func(m *message.Message) { outbox.SetKey(m, strings.Repeat("k", 513)) }))
		publish("the key is not valid UTF-8", "t", change(func(m *message.Message) { outbox.SetKey(m, "\xff") }))
		publish("the UUID is not valid UTF-8", "t", change(func(m *message.Message) { m.UUID = "\xff" }))
		publish(`metadata "card" is not valid UTF-8`, "t", metadata("card", l.secret+"\xff"))
		publish("metadata "+delay.DelayedForKey, "t", metadata(delay.DelayedForKey, l.secret))
		publish("metadata "+delay.DelayedUntilKey, "t", metadata(delay.DelayedUntilKey, l.secret))
		publish("its context has ended", "t", change(func(m *message.Message) { m.SetContext(ended) }))
		publish("a string: ", "t", change(func(m *message.Message) { m.SetContext(outbox.ContextWithTx(t.Context(), w.sqlStore, l.secret)) }))
		publish("message 2 of 2 is nil", "t", l.message("u"), nil)
		keyed, err := outbox.NewPublisher(w.sqlStore, outbox.WithOwnTx(), outbox.WithKeyFunc(
			func(string, *message.Message) (string, error) { return "", errRefused }))
		require.NoError(t, err)
		err = keyed.Publish("t", change(func(m *message.Message) { outbox.SetKey(m, "") }))
		require.ErrorIs(t, err, errRefused)
		l.note(err)
		for _, tx := range []any{w.db, l.secret, []byte(l.secret), l.message("u")} {
			err := own.WithTx(tx).Publish("t", l.message("u"))
			require.ErrorIs(t, err, outbox.ErrInvalidTx)
			l.note(err)
		}
		w.refuse(t, "locked", "outbox_messages")
		publish("no_more", "locked", l.message("u"))
		publish("no_more", "locked", l.message("u"), l.message("v"))
		_, err = w.db.ExecContext(t.Context(), "DROP TABLE outbox_messages")
		require.NoError(t, err)
		publish(outbox.ErrNotMigrated.Error(), "t", l.message("u"))
		l.requireSilence(t)
	})
}

// A Deduplicator has the handler's words, and no others, about a message.
func TestDeduplicator_NeverTellsAPayload_WhenItFails(t *testing.T) {
	t.Parallel()
	forTargets(t, func(t *testing.T, w *target) {
		t.Helper()
		l := newListener()
		fails := func(*message.Message) ([]*message.Message, error) { return nil, errRefused }
		poison, err := middleware.PoisonQueue(broker(func(string, *message.Message) error { return nil }), "poison")
		require.NoError(t, err)
		handle := func(heard string, h message.HandlerFunc, opts ...outbox.DeduplicatorOption) {
			dedup, err := outbox.NewDeduplicator(w.processed, "group", append(opts, outbox.WithLogger(l), outbox.WithObserver(l))...)
			require.NoError(t, err)
			_, err = dedup.Middleware(h)(l.message("u"))
			require.ErrorContains(t, err, heard)
			l.note(err)
		}
		handle(errRefused.Error(), fails)
		handle(errRefused.Error(), fails, outbox.WithEffectElsewhere())
		handle("PoisonQueue is inside", poison(fails))
		handle("asked for a rollback", func(msg *message.Message) ([]*message.Message, error) {
			outbox.SetRollback(msg.Context())
			return nil, nil
		})
		handle("has no topic for them", func(msg *message.Message) ([]*message.Message, error) { return []*message.Message{msg}, nil })
		handle("id of the message: "+errRefused.Error(), fails,
			outbox.WithMessageID(func(*message.Message) (string, error) { return "", errRefused }))
		handle("no UUID to deduplicate on", fails, outbox.WithMessageID(func(*message.Message) (string, error) { return "", nil }))
		_, err = w.db.ExecContext(t.Context(), "DROP TABLE outbox_processed")
		require.NoError(t, err)
		handle(outbox.ErrNotMigrated.Error(), fails)
		handle(outbox.ErrNotMigrated.Error(), fails, outbox.WithEffectElsewhere())
		l.requireSilence(t)
	})
}

// The same in a router, with what that logs: of a message that a handler returns and that cannot be saved, and of one that
// comes twice.
func TestDeduplicator_NeverTellsAPayload_InARouter(t *testing.T) {
	w, l := sqliteTarget(t), newListener()
	channel := gochannel.NewGoChannel(gochannel.Config{Persistent: true}, l)
	router, err := message.NewRouter(message.RouterConfig{}, l)
	require.NoError(t, err)
	dedup, err := outbox.NewDeduplicator(w.processed, "group", outbox.WithLogger(l), outbox.WithObserver(l))
	require.NoError(t, err)
	publisher, err := outbox.NewPublisher(w.sqlStore)
	require.NoError(t, err)
	router.AddMiddleware(middleware.Retry{MaxRetries: 1, InitialInterval: time.Millisecond, Logger: l}.Middleware, middleware.Recoverer, dedup.Middleware)
	returns := func(msg *message.Message) ([]*message.Message, error) {
		produced := l.message("produced")
		produced.Metadata.Set("card", l.secret+"\xff")
		return []*message.Message{produced}, nil
	}
	router.AddHandler("invalid", "in", channel, "out", publisher, returns)
	router.AddHandler("elsewhere", "in", channel, "out", broker(func(string, *message.Message) error { return nil }), returns)
	router.AddConsumerHandler("panics", "in", channel, func(msg *message.Message) error { panic("out of luck") })
	router.AddConsumerHandler("twice", "in", channel, func(*message.Message) error { return nil })
	var running sync.WaitGroup
	running.Go(func() { l.note(router.Run(context.WithoutCancel(t.Context()))) }) // ends at Close
	<-router.Running()
	require.NoError(t, channel.Publish("in", l.message("u"), l.message("u")))
	l.await(t, `metadata "card" is not valid UTF-8`, "would publish them after the commit", "out of luck", "Message was handled before")
	require.NoError(t, router.Close())
	require.NoError(t, channel.Close())
	running.Wait()
	l.requireSilence(t)
}

// everything does what needs the database, and notes all errors.
func (l *listener) everything(t *testing.T, store sqlStore, processed processedStore) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	l.note(store.Migrate(ctx))
	publisher, err := outbox.NewPublisher(store, outbox.WithOwnTx())
	require.NoError(t, err)
	l.note(publisher.Publish("topic", l.message("u")))
	_, err = store.Claim(ctx, 1, 1)
	require.Error(t, err)
	l.note(err)
	_, err = store.Stats(ctx)
	l.note(err)
	_, err = store.ListFailed(ctx, "", 1)
	l.note(err)
	_, err = store.Requeue(ctx, "1")
	l.note(err)
	_, err = store.DeleteProcessedBefore(ctx, time.Now())
	l.note(err)
	_, err = processed.IsProcessed(ctx, nil, "g", "m")
	l.note(err)
	dedup, err := outbox.NewDeduplicator(processed, "group", outbox.WithLogger(l))
	require.NoError(t, err)
	_, err = dedup.Middleware(func(*message.Message) ([]*message.Message, error) { return nil, nil })(l.message("u"))
	l.note(err)
	stop := l.forward(t, store, broker(func(string, *message.Message) error { return nil }))
	cleaning, end := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { // ends with cleaning
		outbox.RunProcessedCleanup(cleaning, processed, nil, time.Hour, time.Hour, outbox.WithLogger(l))
	})
	l.await(t, "Claiming messages failed", "Cleanup of processed message ids failed")
	if _, listens := store.(outbox.Notifier); listens {
		l.await(t, "Noticing commits failed")
	}
	end()
	running.Wait()
	stop()
	l.note(store.Close())
}

// Invariant: the password of an address is in no error and no line of the log, whatever is wrong with the address.
func TestStores_NeverTellAPassword(t *testing.T) {
	server := pgtest.Start(t)
	askForPasswords(t, server)
	host, all := server.Host(), []string{"pgxstore", "pgx", "postgres"}
	for name, c := range map[string]struct {
		address, heard string
		stores         []string
	}{
		"a wrong password":      {"postgres://known:%s@" + host + "/postgres?sslmode=disable", "password authentication failed", all},
		"an unknown role":       {"postgres://unknown:%s@" + host + "/postgres?sslmode=disable", "password authentication failed", all},
		"an unknown database":   {"postgres://postgres:%s@" + host + "/nowhere?sslmode=disable", "does not exist", all},
		"an unknown parameter":  {"postgres://postgres:%s@" + host + "/postgres?sslmode=disable&colour=blue", "colour", all},
		"a port nobody hears":   {"postgres://known:%s@127.0.0.1:1/postgres?sslmode=disable", "refused", all},
		"several, none answers": {"postgres://known:%s@127.0.0.1:1,127.0.0.1:2/postgres?sslmode=disable", "refused", all[:2]}, // lib/pq takes one
		"no URL, but keywords":  {"host=127.0.0.1 port=1 user=known password='%s' dbname=postgres sslmode=disable", "refused", all},
		"a server without TLS":  {"postgres://known:%s@" + host + "/postgres?sslmode=require", "TLS", all[:2]}, // lib/pq calls it SSL
		// The others refuse these when the user opens the database, before a store is made.
		"a URL nobody can read":       {"postgres://known:%s@127.0.0.1:port/postgres", "cannot parse", all[1:2]},
		"keywords that nobody can":    {"host=127.0.0.1 password=%s port", "cannot parse", all[1:2]},
		"a URL without its beginning": {"known:%s@127.0.0.1:1/postgres", "cannot parse", all[1:2]},
	} {
		for _, kind := range c.stores {
			t.Run(name+"/"+kind, func(t *testing.T) {
				l := newListener()
				store, processed := openAt(t, kind, fmt.Sprintf(c.address, l.secret))
				l.everything(t, store, processed)
				l.await(t, c.heard)
				l.requireSilence(t)
			})
		}
	}
}

// askForPasswords has the server ask all but postgres for one.
func askForPasswords(t *testing.T, server *pgtest.Own) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), server.URL())
	require.NoError(t, err)
	defer conn.Close(context.Background()) //nolint:errcheck // it has nothing to say
	var file string
	require.NoError(t, conn.QueryRow(t.Context(), "SHOW hba_file").Scan(&file))
	for _, statement := range []string{
		"CREATE ROLE known LOGIN PASSWORD 'another'",
		"COPY (VALUES ('host all postgres 127.0.0.1/32 trust'), ('host all known,unknown 127.0.0.1/32 scram-sha-256')) TO '" + file + "'",
		"SELECT pg_reload_conf()",
	} {
		_, err := conn.Exec(t.Context(), statement)
		require.NoError(t, err)
	}
	require.Eventually(t, func() bool { // the server reads it when it comes to it
		other, err := pgx.Connect(t.Context(), "postgres://known@"+server.Host()+"/postgres?sslmode=disable")
		if err == nil {
			_ = other.Close(t.Context())
		}
		return err != nil
	}, time.Minute, time.Millisecond)
}

func openAt(t *testing.T, kind, address string) (sqlStore, processedStore) {
	t.Helper()
	if kind == "pgxstore" {
		pool, err := pgxpool.New(t.Context(), address)
		require.NoError(t, err)
		t.Cleanup(pool.Close)
		store, err := pgxstore.New(pool)
		require.NoError(t, err)
		return store, store.Processed()
	}
	db, err := sql.Open(kind, address)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	store, err := postgres.New(db)
	require.NoError(t, err)
	return store, store.Processed()
}

// The driver takes a password as a parameter of the file's name.
func TestSQLite_OpenNeverTellsAPassword(t *testing.T) {
	for path, heard := range map[string]string{
		filepath.Join(t.TempDir(), "nowhere", "app.db") + "?_auth_pass=%s": "unable to open",
		"?_auth_pass=%s":               "names no file",
		":memory:?_auth_pass=%s":       "in memory",
		"app.db?_auth_pass=%s;x=1":     "the parameters of",
		"app.db?_auth_pass=%%%s":       "the parameters of",
		"app.db?%s=%%zz":               "the parameters of",
		"file://u:%s@host/x.db":        "names a host",
		"file://%s":                    "names a host",
		"file://u:p?%s@host/x.db":      "names a host",
		"//u:%s@host/x.db":             "unable to open",
		"postgres://u:%s@host/x":       "unable to open",
		"file:postgres://u:%s@host/x":  "unable to open",
		"file:?x=1&_auth_pass=%s":      "names no file",
		"app.db?mode=ro&_auth_pass=%s": "unable to open",
	} {
		l := newListener()
		_, err := sqlite.Open(fmt.Sprintf(path, l.secret))
		require.ErrorContains(t, err, heard, path)
		require.NotContains(t, err.Error(), "%"+l.secret[:2], "a part of it")
		l.note(err)
		l.requireSilence(t)
	}
}
