package docs_test

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"testing"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/outboxtest"
	"github.com/watermill-outbox/outbox/store/memory"
	"github.com/watermill-outbox/outbox/store/pgxstore"
)

// docs:begin lock
func changeOrder(ctx context.Context, store *pgxstore.Store, orderID string) error {
	return store.InTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		var version int // the UPDATE locks the row until the commit: the next one waits here, and not after its Publish
		err := tx.QueryRow(ctx, "UPDATE orders SET version = version + 1 WHERE id = $1 RETURNING version", orderID).
			Scan(&version)
		if err != nil {
			return err
		}
		msg := message.NewMessage(watermill.NewUUID(), []byte(strconv.Itoa(version)))
		outbox.SetKey(msg, orderID)
		return store.Publisher(tx).Publish("orders.changed", msg)
	})
}

// docs:end lock

// Invariant: of transactions that a row lock serializes, the messages are published in the order of their commits.
func TestChoosingKeys_ARowLockOrdersTheMessagesOfConcurrentTransactions(t *testing.T) {
	const writers, each = 4, 25
	store, pool := newStore(t)
	_, err := pool.Exec(t.Context(), "INSERT INTO orders (id) VALUES ('42')")
	require.NoError(t, err)
	var writing sync.WaitGroup
	for range writers {
		writing.Go(func() { // ends after its transactions
			for range each {
				if err := changeOrder(t.Context(), store, "42"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writing.Wait()
	var versions []string
	outboxtest.Drain(t, store, brokerFunc(func(_ string, msg *message.Message) error {
		versions = append(versions, string(msg.Payload))
		return nil
	}))
	require.Len(t, versions, writers*each)
	for i, version := range versions {
		require.Equal(t, strconv.Itoa(i+1), version)
	}
}

// docs:begin total-order
func newLedger(store outbox.Store) (*outbox.Publisher, error) {
	return outbox.NewPublisher(store, outbox.WithTotalOrder())
}

// docs:end total-order

func TestChoosingKeys_InTotalOrderAMessageThatFailsHoldsAllOthers(t *testing.T) {
	store, err := memory.New()
	require.NoError(t, err)
	publisher, err := newLedger(store)
	require.NoError(t, err)
	tx := store.Begin()
	for range 3 {
		require.NoError(t, publisher.WithTx(tx).Publish("ledger", message.NewMessage(watermill.NewUUID(), nil)))
	}
	require.NoError(t, tx.Commit())
	called := map[string]struct{}{} // one at a time: a key has no more under way
	forwarder, err := outbox.NewForwarder(store, brokerFunc(func(_ string, msg *message.Message) error {
		called[msg.UUID] = struct{}{}
		return errors.New("not now")
	}), outbox.WithLogger(watermill.NopLogger{}))
	require.NoError(t, err)
	n, err := forwarder.Drain(t.Context())
	require.Error(t, err)
	require.Zero(t, n)
	require.Len(t, called, 1)
}
