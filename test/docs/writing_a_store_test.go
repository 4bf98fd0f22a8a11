package docs_test

import (
	"context"
	"errors"
	"io"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/store/memory"
	"github.com/watermill-outbox/outbox/storetest"
)

// The page's store has the five methods, and is memory's underneath.
type (
	fiveMethods struct {
		outbox.Store
		io.Closer
	}

	myDatabase struct {
		*memory.Store
		mu      sync.Mutex
		written []string
	}
)

func newMyDatabase(t *testing.T) *myDatabase {
	t.Helper()
	store, err := memory.New()
	require.NoError(t, err)
	return &myDatabase{Store: store}
}

func newMyStore(db *myDatabase) outbox.Store {
	instance := db.NewInstance()
	return &fiveMethods{instance, instance}
}

func (db *myDatabase) write(_ context.Context, tx any, value string) error {
	t, ok := tx.(*memory.Tx)
	if !ok {
		return errors.New("not a transaction")
	}
	t.OnCommit(func() {
		db.mu.Lock()
		defer db.mu.Unlock()
		db.written = append(db.written, value)
	})
	return nil
}

func (db *myDatabase) writes(context.Context) ([]string, error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.written, nil
}

type myTx struct{ *memory.Tx }

func (t myTx) Handle() any { return t.Tx }

// docs:begin suite
func TestMyStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Harness {
		db := newMyDatabase(t) // an empty one for each subtest, with the outbox's tables and one of the test's own
		return storetest.Harness{
			Open:    func(*testing.T) outbox.Store { return newMyStore(db) },
			Begin:   func(*testing.T, outbox.Store) storetest.Tx { return myTx{db.Begin()} },
			Write:   db.write,  // a row of the test's own, in a transaction
			Written: db.writes, // the rows that are committed
		}
	}, storetest.Features{VirtualTime: true})
}

// docs:end suite
