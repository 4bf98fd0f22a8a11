package movingover_test

import (
	"context"
	"strings"
	"testing"

	watermillsql "github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/components/forwarder"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/test/movingover/after"
)

// publishers returns watermill-sql's publisher on the forwarder topic, and the old forwarder's around it.
func (w *world) publishers(t *testing.T, tx watermillsql.ContextExecutor) (plain, enveloping message.Publisher) {
	t.Helper()
	publisher, err := watermillsql.NewPublisher(tx, watermillsql.PublisherConfig{
		SchemaAdapter: watermillsql.DefaultPostgreSQLSchema{},
	}, nil)
	require.NoError(t, err)
	return publisher, forwarder.NewPublisher(publisher, forwarder.PublisherConfig{ForwarderTopic: forwarderTopic})
}

// newOldMessages are of all kinds that the old way takes.
func newOldMessages() []*message.Message {
	plain := message.NewMessage("first", []byte(`{"customer": "ada"}`))
	plain.Metadata.Set("customer_id", "ada")
	plain.Metadata.Set("name", "Größe \"∞\"\n")
	binary := message.NewMessage("second", []byte{0, 1, 0xff, '\'', '\\'})
	binary.Metadata.Set("customer_id", "O'Neil \\")
	empty := message.NewMessage("third", nil)
	noMetadata := message.NewMessage("fourth", []byte("fourth"))
	noMetadata.Metadata = nil
	return []*message.Message{plain, binary, empty, noMetadata}
}

func TestRedirection_PutsMessagesInTheOutboxAsTheyWere(t *testing.T) {
	w := newWorld(t)
	require.NoError(t, after.Migrate(t.Context(), w.db, w.store))
	tx, err := w.db.BeginTx(t.Context(), nil)
	require.NoError(t, err)
	_, publisher := w.publishers(t, tx)
	require.NoError(t, publisher.Publish("orders", newOldMessages()...))
	require.Zero(t, w.count(t, `SELECT count(*) FROM outbox_messages`), "before the commit")
	require.NoError(t, tx.Commit())
	_, publisher = w.publishers(t, w.db)
	require.NoError(t, publisher.Publish("orders", message.NewMessage("", nil)))

	require.Zero(t, w.count(t, `SELECT count(*) FROM watermill_forwarder_topic`))
	rows, err := w.store.Claim(t.Context(), 10, 1<<20)
	require.NoError(t, err)
	require.Len(t, rows, 5)
	keys := []string{"ada", `O'Neil \`, "", "", ""}
	for i, old := range newOldMessages() {
		require.Equal(t, old.UUID, rows[i].UUID)
		require.Equal(t, "orders", rows[i].Topic)
		require.Equal(t, keys[i], rows[i].Key)
		require.Equal(t, string(old.Payload), string(rows[i].Payload))
		require.Len(t, rows[i].Headers, len(old.Metadata))
		for k, v := range old.Metadata {
			require.Equal(t, v, rows[i].Headers[k])
		}
		require.Equal(t, outbox.StatusProcessing, rows[i].Status)
	}
	require.NotEmpty(t, rows[4].UUID)
}

func TestRedirection_LeavesMessagesWithoutEnvelopeWhereTheyGo(t *testing.T) {
	w := newWorld(t)
	require.NoError(t, after.Migrate(t.Context(), w.db, w.store))
	plain, _ := w.publishers(t, w.db)
	for _, payload := range []string{`{}`, `{"destination_topic": ""}`, `[1]`, `"text"`, `null`} {
		require.NoError(t, plain.Publish(forwarderTopic, message.NewMessage("plain", []byte(payload))))
	}
	require.Equal(t, 5, w.count(t, `SELECT count(*) FROM watermill_forwarder_topic`))
	require.Zero(t, w.count(t, `SELECT count(*) FROM outbox_messages`))
}

// PostgreSQL's JSON functions stop at a NUL. The transaction that publishes it gets an error; nothing is lost unseen.
func TestRedirection_RefusesNULInMetadata(t *testing.T) {
	w := newWorld(t)
	require.NoError(t, after.Migrate(t.Context(), w.db, w.store))
	_, publisher := w.publishers(t, w.db)
	msg := message.NewMessage("uuid", []byte{0})
	msg.Metadata.Set("name", "\x00")
	var refused *pgconn.PgError
	require.ErrorAs(t, publisher.Publish("orders", msg), &refused)
	require.Equal(t, "22P05", refused.Code)
}

// Invariant: what a transaction has put into the old topic is committed before anything goes to the outbox instead.
func TestRedirection_WaitsForTransactionsThatHavePublished(t *testing.T) {
	const lockNotAvailable = "55P03"
	w := newWorld(t)
	tx, err := w.db.BeginTx(t.Context(), nil)
	require.NoError(t, err)
	_, publisher := w.publishers(t, tx)
	require.NoError(t, publisher.Publish("orders", newOldMessages()...))

	var refused *pgconn.PgError
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	require.ErrorAs(t, after.Migrate(ctx, w.db, w.store), &refused)
	require.Equal(t, lockNotAvailable, refused.Code)
	require.NoError(t, publisher.Publish("orders", newOldMessages()...), "nobody is to wait any more")
	require.NoError(t, tx.Commit())

	require.NoError(t, after.Migrate(t.Context(), w.db, w.store))
	require.Equal(t, 8, w.count(t, `SELECT count(*) FROM watermill_forwarder_topic`))
}

// A transaction may have looked before the redirection and publish after it.
func TestRedirection_GetsWhatOlderTransactionsPublish(t *testing.T) {
	w := newWorld(t)
	tx, err := w.db.BeginTx(t.Context(), nil)
	require.NoError(t, err)
	_, err = tx.ExecContext(t.Context(), `SET TRANSACTION ISOLATION LEVEL REPEATABLE READ`)
	require.NoError(t, err)
	_, err = tx.ExecContext(t.Context(), `SELECT FROM customers`)
	require.NoError(t, err)
	require.NoError(t, after.Migrate(t.Context(), w.db, w.store))
	_, publisher := w.publishers(t, tx)
	require.NoError(t, publisher.Publish("orders", newOldMessages()...))
	require.NoError(t, tx.Commit())
	require.Zero(t, w.count(t, `SELECT count(*) FROM watermill_forwarder_topic`))
	require.Equal(t, 4, w.count(t, `SELECT count(*) FROM outbox_messages`))
}

// The guide has these for keys that are not in the metadata already.
func TestRedirection_FindsTheKey(t *testing.T) {
	redirect := script(t, "redirect.sql")
	const fromMetadata = `NEW.payload->'metadata'->>'customer_id'`
	require.Contains(t, redirect, fromMetadata)
	for name, expression := range map[string]string{
		"in the payload": `convert_from(decode(NEW.payload->>'payload', 'base64'), 'UTF8')::json->>'customer'`,
		"by SetKey":      `NEW.payload->'metadata'->>'_outbox_key'`,
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			require.NoError(t, w.store.Migrate(t.Context()))
			w.exec(t, strings.ReplaceAll(redirect, fromMetadata, expression))
			_, publisher := w.publishers(t, w.db)
			msg := message.NewMessage("uuid", []byte(`{"customer": "ada"}`))
			outbox.SetKey(msg, "ada")
			require.NoError(t, publisher.Publish("orders", msg))
			require.Equal(t, 1, w.count(t, `SELECT count(*) FROM outbox_messages WHERE key = 'ada'`))
		})
	}
}

// watermill-sql's payloads are JSON by default. The guide says what to write for bytes.
func TestRedirection_ReadsTablesOfOtherTypes(t *testing.T) {
	for column, payload := range map[string]string{
		"jsonb": `NEW.payload`,
		"bytea": `convert_from(NEW.payload, 'UTF8')::json`,
	} {
		t.Run(column, func(t *testing.T) {
			w := newWorld(t)
			require.NoError(t, w.store.Migrate(t.Context()))
			w.exec(t, `DROP TABLE watermill_forwarder_topic`)
			w.createOldTables(t, watermillsql.DefaultPostgreSQLSchema{GeneratePayloadType: func(string) string { return column }})
			w.exec(t, strings.ReplaceAll(script(t, "redirect.sql"), `NEW.payload`, payload))
			w.place(t, w.old(), "ada", 1)
			require.Equal(t, 1, w.count(t, `SELECT count(*) FROM outbox_messages WHERE key = 'ada'
				AND convert_from(payload, 'UTF8') = '{"customer":"ada","number":1,"amount":100}'`))
		})
	}
}
