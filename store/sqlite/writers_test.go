package sqlite_test

import (
	"context"
	"database/sql"
	"errors"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/store/sqlite"
)

// What writes at the same time. In a synctest bubble a transaction that sleeps has all others wait as long as they can
// bear in real time, if it is SQLite that they wait for, since the clock stands still until they do not run any more.

const (
	useTheOpenOne = "begin no other"
	busy20ms      = "?_synchronous=NORMAL&_busy_timeout=20"
)

func migratedAt(t *testing.T, path string) (*sqlite.Store, *sql.DB) {
	t.Helper()
	db := open(t, path)
	store := newStore(t, db)
	require.NoError(t, store.Migrate(t.Context()))
	return store, db
}

func TestDeduplicator_NoHandlerFails_HoweverManyWriteAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, db := migratedAt(t, filepath.Join(t.TempDir(), "outbox.db"+busy20ms))
		_, err := db.Exec("CREATE TABLE effects (id TEXT)")
		require.NoError(t, err)
		dedup, err := outbox.NewDeduplicator(store.Processed(), "group", outbox.WithLogger(watermill.NopLogger{}))
		require.NoError(t, err)
		handle := dedup.Middleware(func(msg *message.Message) ([]*message.Message, error) {
			tx, _ := store.TxFromContext(msg.Context())
			_, err := tx.Exec("INSERT INTO effects VALUES (?)", msg.UUID)
			time.Sleep(5 * time.Millisecond)
			return nil, err
		})
		const handlers, each = 20, 10
		errs := make(chan error, handlers*each)
		var wg sync.WaitGroup
		for range handlers {
			wg.Go(func() {
				for range each {
					_, err := handle(message.NewMessage(watermill.NewUUID(), nil))
					errs <- err
				}
			})
		}
		wg.Wait()
		close(errs)
		for err := range errs {
			require.NoError(t, err)
		}
		var n int
		require.NoError(t, db.QueryRow("SELECT count(*) FROM effects").Scan(&n))
		require.Equal(t, handlers*each, n)
	})
}

func TestForwarder_PublishesAndKeepsItsLease_WhileManyHandlersWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, _ := migratedAt(t, filepath.Join(t.TempDir(), "outbox.db?_synchronous=NORMAL&_busy_timeout=1500"))
		lost := make(chan outbox.Event, 1000)
		broker := newArrivals(nil)
		_, log, _ := forward(t, store, broker, outbox.WithObserver(outbox.ObserverFunc(
			func(_ context.Context, event outbox.Event) {
				if e, ok := event.(outbox.LeaseLostEvent); ok && e.Err != nil {
					lost <- event
				}
			})))
		stop := make(chan struct{})
		var wg sync.WaitGroup
		defer wg.Wait()
		defer close(stop)
		for range 10 { // of a second each: the last in line waits for as long as a lease lasts
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					err := store.InTx(context.Background(), func(context.Context, *sql.Tx) error {
						time.Sleep(time.Second)
						return nil
					})
					if err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		for i := range 10 {
			save(t, store, "topic", strconv.Itoa(i))
			require.Equal(t, strconv.Itoa(i), broker.next(t))
		}
		require.Empty(t, lost)
		require.Empty(t, log.lines)
	})
}

func TestStore_AWriteBesideTheOpenTransaction_FailsAndSaysWhatToDo(t *testing.T) {
	for name, write := range map[string]func(ctx context.Context, store *sqlite.Store) error{
		"InTx": func(ctx context.Context, store *sqlite.Store) error {
			return store.InTx(ctx, func(context.Context, *sql.Tx) error { return nil })
		},
		"Publish of a message without the transaction": func(_ context.Context, store *sqlite.Store) error {
			pub, err := outbox.NewPublisher(store, outbox.WithOwnTx())
			return errors.Join(err, pub.Publish("topic", message.NewMessage("id", nil)))
		},
		"MarkProcessed": func(ctx context.Context, store *sqlite.Store) error {
			_, err := store.Processed().MarkProcessed(ctx, nil, "group", "id", nil)
			return err
		},
		"Requeue": func(ctx context.Context, store *sqlite.Store) error {
			_, err := store.Requeue(ctx, "1")
			return err
		},
		"Save of another store on the same *sql.DB": func(ctx context.Context, store *sqlite.Store) error {
			return store.Save(ctx, nil, outbox.Message{Topic: "topic"})
		},
		"Claim": func(ctx context.Context, store *sqlite.Store) error {
			_, err := store.Claim(ctx, 1, 1)
			return err
		},
	} {
		for _, connections := range []int{0, 1} {
			if name == "Claim" && connections == 1 {
				continue // it reads first, and waits for the connection as long as its context lasts
			}
			t.Run(name+", connections="+strconv.Itoa(connections), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					store, db := migratedAt(t, filepath.Join(t.TempDir(), "outbox.db?_synchronous=NORMAL"))
					db.SetMaxOpenConns(connections)
					writer := store
					if name == "Save of another store on the same *sql.DB" {
						writer = newStore(t, db)
					}
					waiting := make(chan error, 1)
					err := store.InTx(t.Context(), func(ctx context.Context, _ *sql.Tx) error {
						go func() {
							waiting <- store.Save(context.Background(), nil, outbox.Message{Topic: "other", UUID: "waits"})
						}()
						time.Sleep(time.Second) // it is in line by then
						return write(ctx, writer)
					})
					require.ErrorContains(t, err, "database is locked")
					require.ErrorContains(t, err, useTheOpenOne)
					require.ErrorContains(t, <-waiting, useTheOpenOne, "it came while the transaction was open")
					save(t, store, "topic", "afterwards")
				})
			})
		}
	}
}

// A transaction that the user has begun himself stands in no queue.
func TestStore_InTxBesideATransactionOfTheUsersOwn_SaysThatOneIsOpen(t *testing.T) {
	for connections, says := range map[int]string{0: "database is locked", 1: "no connection of the *sql.DB has come free"} {
		synctest.Test(t, func(t *testing.T) {
			store, db := migratedAt(t, filepath.Join(t.TempDir(), "outbox.db"+busy20ms))
			db.SetMaxOpenConns(connections)
			tx, err := db.Begin()
			require.NoError(t, err)
			err = store.InTx(t.Context(), func(context.Context, *sql.Tx) error { return nil })
			require.ErrorContains(t, err, "sqlite: begin a transaction: "+says)
			require.ErrorContains(t, err, useTheOpenOne)
			require.NoError(t, tx.Rollback())
			save(t, store, "topic", "afterwards")
		})
	}
}

func TestStore_TheNextTransactionBegins_HoweverTheLastOneEnds(t *testing.T) {
	errOfFn := errors.New("fn")
	for name, fn := range map[string]func(tx *sql.Tx) error{
		"commit":                func(*sql.Tx) error { return nil },
		"rollback":              func(*sql.Tx) error { return errOfFn },
		"panic":                 func(*sql.Tx) error { panic(errOfFn) },
		"Goexit":                func(*sql.Tx) error { runtime.Goexit(); return nil },
		"a commit of fn's own":  func(tx *sql.Tx) error { return tx.Commit() },
		"a rollback of its own": func(tx *sql.Tx) error { return errors.Join(tx.Rollback(), errOfFn) },
		"a commit that fails": func(tx *sql.Tx) error {
			_, err := tx.Exec("ROLLBACK")
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store, _ := migratedAt(t, filepath.Join(t.TempDir(), "outbox.db?_synchronous=NORMAL"))
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					defer func() { _ = recover() }()
					_ = store.InTx(context.Background(), func(_ context.Context, tx *sql.Tx) error { return fn(tx) })
				}()
				<-ended
				for i := range 3 {
					save(t, store, "topic", strconv.Itoa(i))
				}
			})
		})
	}
}

func TestStore_PublishesNothing_WhereAStatementHasEndedItsTransaction(t *testing.T) {
	for name, statement := range map[string]string{
		"INSERT OR ROLLBACK": "INSERT OR ROLLBACK INTO numbers VALUES (1)",
		"RAISE(ROLLBACK)":    "INSERT INTO numbers VALUES (-1)",
		"ON CONFLICT":        "INSERT INTO strict_numbers VALUES (1)",
	} {
		t.Run(name, func(t *testing.T) {
			store, db := migrated(t)
			_, err := db.Exec(`CREATE TABLE numbers (n INTEGER PRIMARY KEY); INSERT INTO numbers VALUES (1);
				CREATE TABLE strict_numbers (n INTEGER PRIMARY KEY ON CONFLICT ROLLBACK); INSERT INTO strict_numbers VALUES (1);
				CREATE TRIGGER positive BEFORE INSERT ON numbers WHEN new.n < 0 BEGIN SELECT RAISE(ROLLBACK, 'negative'); END`)
			require.NoError(t, err)
			err = store.InTx(t.Context(), func(_ context.Context, tx *sql.Tx) error {
				require.NoError(t, store.Publisher(tx).Publish("topic", message.NewMessage("before", nil)))
				_, err := tx.Exec(statement)
				require.Error(t, err) // and fn goes on
				err = store.Publisher(tx).Publish("topic", message.NewMessage("phantom", nil))
				require.ErrorIs(t, err, sql.ErrTxDone)
				require.ErrorContains(t, err, "return the first error")
				_, err = tx.Exec("INSERT INTO numbers VALUES (2)")
				require.ErrorIs(t, err, sql.ErrTxDone)
				return nil
			})
			require.ErrorIs(t, err, sql.ErrTxDone, "nothing of it has been committed")
			rows, err := store.Pending(t.Context(), nil, 10)
			require.NoError(t, err)
			require.Empty(t, rows)
			save(t, store, "topic", "afterwards")
		})
	}
}
