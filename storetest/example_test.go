package storetest_test

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/store/memory"
	"github.com/watermill-outbox/outbox/storetest"
)

// The suite for a store of your own, with the memory store in its place. In a database the business writes go to a
// table that the harness creates.
func ExampleRun() {
	testStore := func(t *testing.T) { // func TestStore in your package
		storetest.Run(t, func(t *testing.T) storetest.Harness {
			t.Helper()
			db, err := memory.New()
			if err != nil {
				t.Fatal(err)
			}
			var mu sync.Mutex
			var business []string
			return storetest.Harness{
				Open:  func(*testing.T) outbox.Store { return db.NewInstance() },
				Begin: func(*testing.T, outbox.Store) storetest.Tx { return exampleTx{db.Begin()} },
				Write: func(_ context.Context, tx any, value string) error {
					t, ok := tx.(*memory.Tx)
					if !ok {
						return errors.New("not a transaction")
					}
					t.OnCommit(func() {
						mu.Lock()
						defer mu.Unlock()
						business = append(business, value)
					})
					return nil
				},
				Written: func(context.Context) ([]string, error) {
					mu.Lock()
					defer mu.Unlock()
					return business, nil
				},
			}
		}, storetest.Features{
			Slots: 1, Transactor: true, Notifier: true, TopicPauser: true, Leader: true, Inspector: true, StatsReporter: true,
			VirtualTime: true,
		})
	}
	_ = testStore
}

type exampleTx struct{ *memory.Tx }

func (t exampleTx) Handle() any { return t.Tx }
