package outbox_test

import (
	"context"
	"database/sql"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/mattn/go-sqlite3"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
)

// An interrupted statement takes the whole transaction along, and what comes after it would commit by itself. A handler
// that ignores the error, and returns a message, must not have it published although its own delivery has failed.
func TestDeduplicator_SavesNothing_WhenAnInterruptedStatementHasEndedTheTransaction(t *testing.T) {
	for name, test := range map[string]struct {
		inside message.HandlerMiddleware
		cancel bool
	}{
		"by a router that closes": {func(h message.HandlerFunc) message.HandlerFunc { return h }, true},
		"by a Timeout further in": {middleware.Timeout(50 * time.Millisecond), false},
	} {
		t.Run(name, func(t *testing.T) {
			store, db := newSQLite(t)
			db.SetMaxOpenConns(1) // the one that knows the function
			pub, err := outbox.NewPublisher(store)
			require.NoError(t, err)
			ctx, cancel := context.WithCancel(routed(t, "handler", pub).Context())
			defer cancel()
			registerFunc(t, db, "close_router", func() int {
				if test.cancel {
					cancel()
				}
				return 1
			})
			_, err = db.Exec("CREATE TABLE effects (what TEXT NOT NULL)")
			require.NoError(t, err)
			dedup, err := outbox.NewDeduplicator(store.Processed(), "group", outbox.WithLogger(watermill.NopLogger{}))
			require.NoError(t, err)

			interrupted := false
			h := dedup.Middleware(test.inside(func(msg *message.Message) ([]*message.Message, error) {
				tx, _ := store.TxFromContext(msg.Context())
				const endless = `INSERT INTO effects WITH RECURSIVE n (i) AS (SELECT close_router() UNION ALL SELECT i + 1 FROM n)
					SELECT i FROM n`
				_, err := tx.ExecContext(msg.Context(), endless)
				interrupted = err != nil
				return []*message.Message{newMessage("phantom", "")}, nil
			}))
			_, err = h(message.NewMessageWithContext(ctx, "id", nil))
			require.True(t, interrupted)
			require.Error(t, err, "it comes again")
			pending, err := store.Pending(t.Context(), nil, 10)
			require.NoError(t, err)
			require.Empty(t, pending)
		})
	}
}

// registerFunc gives the only connection of db a function.
func registerFunc(t *testing.T, db *sql.DB, name string, f func() int) {
	t.Helper()
	conn, err := db.Conn(t.Context())
	require.NoError(t, err)
	defer conn.Close() //nolint:errcheck // it goes back to the pool
	require.NoError(t, conn.Raw(func(c any) error { return c.(*sqlite3.SQLiteConn).RegisterFunc(name, f, false) }))
}
