package outboxtest_test

import (
	"context"
	"database/sql"
	"fmt"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/store/memory"
	"github.com/watermill-outbox/outbox/store/sqlite"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// transaction is what a *sql.Tx and a *memory.Tx have in common.
type transaction interface {
	Commit() error
	Rollback() error
}

// harness is a store, and transactions on its database.
type harness struct {
	outbox.Store

	begin func() transaction
}

func forEachStore(t *testing.T, test func(t *testing.T, h harness)) {
	t.Helper()
	t.Run("memory", func(t *testing.T) {
		store := newMemory(t)
		test(t, harness{store, func() transaction { return store.Begin() }})
	})
	t.Run("sqlite", func(t *testing.T) {
		store, db := newSQLite(t)
		test(t, harness{store, func() transaction {
			tx, err := db.BeginTx(context.Background(), nil)
			require.NoError(t, err)
			return tx
		}})
	})
}

func newMemory(t testing.TB) *memory.Store {
	t.Helper()
	store, err := memory.New()
	require.NoError(t, err)
	return store
}

func newSQLite(t *testing.T) (*sqlite.Store, *sql.DB) {
	t.Helper()
	db, err := sqlite.Open(filepath.Join(t.TempDir(), "outbox.db?_synchronous=NORMAL"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	store, err := sqlite.New(db)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	require.NoError(t, store.Migrate(context.Background()))
	return store, db
}

func newMessage(payload string) *message.Message {
	return message.NewMessage(watermill.NewUUID(), []byte(payload))
}

// publish writes to the outbox, in tx or, if that is nil, in a transaction of its own.
func publish(t *testing.T, store outbox.Store, tx any, topic string, msgs ...*message.Message) {
	t.Helper()
	publisher, err := outbox.NewPublisher(store, outbox.WithOwnTx())
	require.NoError(t, err)
	if tx != nil {
		publisher = publisher.WithTx(tx)
	}
	require.NoError(t, publisher.Publish(topic, msgs...))
}

func payloads(msgs []*message.Message) []string {
	all := []string{}
	for _, msg := range msgs {
		all = append(all, string(msg.Payload))
	}
	return all
}

// recorder is a testing.TB that keeps the failure to itself.
type recorder struct {
	testing.TB

	failure string
}

func (r *recorder) Fatalf(format string, args ...any) {
	r.failure = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

// failureOf returns what test fails with, or "" if it does not fail.
func failureOf(t *testing.T, test func(t testing.TB)) string {
	t.Helper()
	r := &recorder{TB: t}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		test(r)
	}()
	<-ended
	return r.failure
}
