package outbox_test

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/components/delay"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/store/memory"
)

// database is a store of whichever kind, with a table for the effects of handlers.
type database struct {
	outbox.LeasedStore
	outbox.Transactor

	processed interface {
		outbox.ProcessedStore
		outbox.Transactor
	}
	write   func(ctx context.Context, what string) error // in the transaction that ctx carries
	effects func() (map[string]int, error)
	forget  func() error // the effects
	pending func() ([]outbox.Message, error)
	now     func() time.Time
	age     func() error // makes what is recorded an hour older
}

func memoryDatabase(t *testing.T) *database {
	t.Helper()
	store := newMemory(t)
	var mu sync.Mutex
	effects := map[string]int{}
	return &database{
		LeasedStore: store, Transactor: store, processed: store.Processed(),
		write: func(ctx context.Context, what string) error {
			tx, ok := store.TxFromContext(ctx)
			if !ok {
				return outbox.ErrNoTx
			}
			tx.OnCommit(func() {
				mu.Lock()
				defer mu.Unlock()
				effects[what]++
			})
			return nil
		},
		effects: func() (map[string]int, error) {
			mu.Lock()
			defer mu.Unlock()
			return maps.Clone(effects), nil
		},
		forget: func() error {
			mu.Lock()
			defer mu.Unlock()
			clear(effects)
			return nil
		},
		pending: func() ([]outbox.Message, error) { return store.Pending(context.Background(), nil, 1000) },
		now:     store.Now,
		age:     func() error { store.Advance(time.Hour); return nil },
	}
}

func sqliteDatabase(t *testing.T) *database {
	t.Helper()
	store, db := newSQLite(t)
	exec := func(query string) error { _, err := db.Exec(query); return err }
	require.NoError(t, exec("CREATE TABLE effects (what TEXT NOT NULL)"))
	return &database{
		LeasedStore: store, Transactor: store, processed: store.Processed(),
		write: func(ctx context.Context, what string) error {
			tx, ok := store.TxFromContext(ctx)
			if !ok {
				return outbox.ErrNoTx
			}
			_, err := tx.ExecContext(ctx, "INSERT INTO effects (what) VALUES (?)", what)
			return err
		},
		effects: func() (map[string]int, error) {
			var counts []byte
			err := db.QueryRow("SELECT json_group_object(what, n) FROM (SELECT what, count(*) AS n FROM effects GROUP BY what)").
				Scan(&counts)
			effects := map[string]int{}
			return effects, errors.Join(err, json.Unmarshal(counts, &effects))
		},
		forget:  func() error { return exec("DELETE FROM effects") },
		pending: func() ([]outbox.Message, error) { return store.Pending(context.Background(), nil, 1000) },
		now:     time.Now,
		age:     func() error { return exec("UPDATE outbox_processed SET processed_at = processed_at - 3600000") },
	}
}

func forEachDatabase(t *testing.T, test func(t *testing.T, db *database)) {
	t.Helper()
	t.Run("memory", func(t *testing.T) { test(t, memoryDatabase(t)) })
	t.Run("sqlite", func(t *testing.T) { test(t, sqliteDatabase(t)) })
}

func (db *database) dedup(t *testing.T, group string, opts ...outbox.DeduplicatorOption) message.HandlerMiddleware {
	t.Helper()
	d, err := outbox.NewDeduplicator(db.processed, group,
		append([]outbox.DeduplicatorOption{outbox.WithLogger(watermill.NopLogger{})}, opts...)...)
	require.NoError(t, err)
	return d.Middleware
}

// writes is a handler that does.
func (db *database) writes(what string) message.HandlerFunc {
	return func(msg *message.Message) ([]*message.Message, error) { return nil, db.write(msg.Context(), what) }
}

// isMarked tells whether the message is recorded under a name.
func (db *database) isMarked(t require.TestingT, name, id string) bool {
	seen, err := db.processed.IsProcessed(context.Background(), nil, name, id)
	require.NoError(t, err)
	return seen
}

// counts are the effects and, by their payloads, the pending messages.
func (db *database) counts(t require.TestingT) (effects, pending map[string]int) {
	effects, err := db.effects()
	require.NoError(t, err)
	rows, err := db.pending()
	require.NoError(t, err)
	pending = map[string]int{}
	for _, row := range rows {
		pending[string(row.Payload)]++
	}
	return effects, pending
}

// requireEffects checks what has been written, and how often.
func (db *database) requireEffects(t *testing.T, want map[string]int) {
	t.Helper()
	effects, _ := db.counts(t)
	require.Equal(t, want, effects)
}

func TestDeduplicator_HandlesARedeliveredMessageOnce(t *testing.T) {
	forEachDatabase(t, func(t *testing.T, db *database) {
		seen := &events{}
		h := db.dedup(t, "group", outbox.WithObserver(seen))(db.writes("effect"))
		msg := newMessage("x", "")
		for range 3 {
			_, err := h(msg)
			require.NoError(t, err)
		}
		db.requireEffects(t, map[string]int{"effect": 1})
		again := outbox.DeduplicatedEvent{Group: "group", MessageID: msg.UUID}
		require.Equal(t, []outbox.DeduplicatedEvent{again, again}, collect[outbox.DeduplicatedEvent](seen))
	})
}

func TestDeduplicator_RollsBackTogetherWithTheHandler(t *testing.T) {
	for _, ending := range []string{"error", "panic", "SetRollback", "nack"} {
		t.Run(ending, func(t *testing.T) {
			forEachDatabase(t, func(t *testing.T, db *database) {
				h := db.dedup(t, "group")(func(msg *message.Message) ([]*message.Message, error) {
					err := db.write(msg.Context(), "effect")
					if string(msg.Payload) == "fails" {
						err = end(msg, ending, nil)
					}
					return nil, err
				})
				require.Error(t, safely(h, message.NewMessage("id", []byte("fails"))))
				db.requireEffects(t, map[string]int{})
				require.False(t, db.isMarked(t, "group", "id"))
				require.NoError(t, safely(h, message.NewMessage("id", nil)))
				db.requireEffects(t, map[string]int{"effect": 1})
			})
		})
	}
}

type contextKey struct{}

func TestDeduplicator_RestoresTheContextForAnOuterRetry(t *testing.T) {
	db := memoryDatabase(t)
	original := context.WithValue(t.Context(), contextKey{}, "original")
	msg := newMessage("x", "")
	msg.SetContext(original)
	_, err := db.dedup(t, "group")(func(*message.Message) ([]*message.Message, error) { return nil, errDown })(msg)
	require.ErrorIs(t, err, errDown)
	require.Equal(t, original, msg.Context())
}

// A router that closes cancels the contexts of messages that are being handled.
func TestDeduplicator_ACancelledContextDoesNotUndoWhatTheHandlerFinished(t *testing.T) {
	forEachDatabase(t, func(t *testing.T, db *database) {
		for group, opts := range map[string][]outbox.DeduplicatorOption{
			"transactional": nil, "elsewhere": {outbox.WithEffectElsewhere()},
		} {
			ctx, cancel := context.WithCancel(t.Context())
			_, err := db.dedup(t, group, opts...)(func(*message.Message) ([]*message.Message, error) {
				cancel()
				return nil, nil
			})(message.NewMessageWithContext(ctx, "id", nil))
			require.NoError(t, err)
			require.True(t, db.isMarked(t, group, "id"), group)
		}
	})
}

func TestDeduplicator_GroupsDoNotSwallowEachOthersMessages(t *testing.T) {
	forEachDatabase(t, func(t *testing.T, db *database) {
		msg := newMessage("x", "")
		for _, group := range []string{"billing", "shipping"} {
			_, err := db.dedup(t, group)(db.writes(group))(msg)
			require.NoError(t, err)
		}
		db.requireEffects(t, map[string]int{"billing": 1, "shipping": 1})
	})
}

func TestDeduplicator_NeedsAnID(t *testing.T) {
	db := memoryDatabase(t)
	empty := message.NewMessage("", []byte("x"))
	never := func(*message.Message) ([]*message.Message, error) { panic("must not be called") }
	_, err := db.dedup(t, "group")(never)(empty)
	require.ErrorIs(t, err, outbox.ErrInvalidMessage)
	require.ErrorContains(t, err, "outbox.WithMessageID")

	noID := outbox.WithMessageID(func(*message.Message) (string, error) { return "id", errDown })
	_, err = db.dedup(t, "group", noID)(never)(empty)
	require.ErrorIs(t, err, errDown)

	byPayload := outbox.WithMessageID(func(msg *message.Message) (string, error) { return string(msg.Payload), nil })
	h := db.dedup(t, "group", byPayload)(db.writes("effect"))
	for range 2 {
		_, err := h(empty)
		require.NoError(t, err)
	}
	db.requireEffects(t, map[string]int{"effect": 1})
}

// Ids are compared byte by byte, whatever they are made of and however long.
func TestDeduplicator_TellsStrangeIDsApart(t *testing.T) {
	forEachDatabase(t, func(t *testing.T, db *database) {
		long := strings.Repeat("x", 10<<10)
		h := db.dedup(t, "group")(db.writes("effect"))
		ids := []string{"id", "id ", "ID", "id\x00", "id\x00a", "\x00", "\xff", "\xfe", "\ufffd", long + "a", long + "b"}
		for range 2 {
			for _, id := range ids {
				_, err := h(message.NewMessage(id, nil))
				require.NoError(t, err, "%.20q", id)
			}
		}
		db.requireEffects(t, map[string]int{"effect": len(ids)})
	})
}

func TestProcessedStore_SaysThatMetadataMustBeJSON(t *testing.T) {
	forEachDatabase(t, func(t *testing.T, db *database) {
		for _, metadata := range []string{"", "{", "text", `{"a":1} {}`, "\xff", `"` + "\xff", "NaN"} {
			_, err := db.processed.MarkProcessed(t.Context(), nil, "group", "id", json.RawMessage(metadata))
			require.ErrorContains(t, err, "metadata is not valid JSON", "%q", metadata)
		}
		require.False(t, db.isMarked(t, "group", "id"))
	})
}

func TestDeduplicator_EffectElsewhere_MarksAfterSuccessOnly(t *testing.T) {
	forEachDatabase(t, func(t *testing.T, db *database) {
		calls := 0
		h := db.dedup(t, "group", outbox.WithEffectElsewhere())(func(msg *message.Message) ([]*message.Message, error) {
			_, inTx := outbox.TxFromContext(msg.Context(), db.LeasedStore)
			require.False(t, inTx)
			if calls++; calls == 1 {
				return nil, errDown
			}
			return nil, nil
		})
		msg := newMessage("x", "")
		_, err := h(msg)
		require.ErrorIs(t, err, errDown)
		for range 3 {
			_, err := h(msg)
			require.NoError(t, err)
		}
		require.Equal(t, 2, calls)
	})
}

// billing is a handler that writes its effect and returns a message.
func (db *database) billing(msg *message.Message) ([]*message.Message, error) {
	return []*message.Message{newMessage("bill", "")}, db.write(msg.Context(), "effect")
}

func (db *database) publisher(t *testing.T, opts ...outbox.PublisherOption) *outbox.Publisher {
	t.Helper()
	publisher, err := outbox.NewPublisher(db.LeasedStore, opts...)
	require.NoError(t, err)
	return publisher
}

func TestDeduplicator_SavesWhatTheHandlerReturns_InItsTransaction(t *testing.T) {
	db := sqliteDatabase(t)
	publisher := db.publisher(t, outbox.WithKeyFunc(func(string, *message.Message) (string, error) { return "key", nil }))
	f := newFlow(t, publisher, func(msg *message.Message) ([]*message.Message, error) {
		produced, err := db.billing(msg)
		produced[0].SetContext(delay.WithContext(msg.Context(), delay.For(time.Hour)))
		return produced, err
	}, db.dedup(t, "group"))
	require.NoError(t, f.deliver(newMessage("x", "")))
	db.requireEffects(t, map[string]int{"effect": 1})
	rows, err := db.pending()
	require.NoError(t, err)
	require.Len(t, rows, 1)
	require.Equal(t, "bills", rows[0].Topic)
	require.Equal(t, "key", rows[0].Key, "by the very publisher of the handler")
	require.False(t, rows[0].AvailableAt.IsZero(), "its own context counts, too")
}

func TestDeduplicator_DoesNotLetReturnedMessagesLeakToAnotherBroker(t *testing.T) {
	db, b := memoryDatabase(t), newBroker()
	f := newFlow(t, b, db.billing, db.dedup(t, "group"))
	require.ErrorContains(t, f.deliver(newMessage("x", "")), "outbox.WithProducedPublisher")
	require.Empty(t, b.payloads())
	effects, pending := db.counts(t)
	require.Empty(t, effects)
	require.Empty(t, pending)
}

func TestDeduplicator_WithProducedPublisher_UsesADecoratedOutbox(t *testing.T) {
	db := memoryDatabase(t)
	decorated, err := message.MessageTransformPublisherDecorator(func(m *message.Message) {
		m.Metadata.Set("decorated", "yes")
	})(db.publisher(t))
	require.NoError(t, err)
	f := newFlow(t, decorated, db.billing, db.dedup(t, "group", outbox.WithProducedPublisher(decorated)))
	require.NoError(t, f.deliver(newMessage("x", "")))
	rows, err := db.pending()
	require.NoError(t, err)
	require.Len(t, rows, 1)
	require.Equal(t, "yes", rows[0].Headers["decorated"])
}

func TestDeduplicator_RefusesAnOutboxInAnotherDatabase(t *testing.T) {
	db, other := memoryDatabase(t), memoryDatabase(t)
	err := newFlow(t, other.publisher(t), db.billing, db.dedup(t, "group")).deliver(newMessage("x", ""))
	require.ErrorIs(t, err, outbox.ErrNoTx)
	require.ErrorContains(t, err, "another outbox")
	db.requireEffects(t, map[string]int{})
}

func TestDeduplicator_SavesReturnedMessagesInItsOwnTransaction_WhateverTheirContextsCarry(t *testing.T) {
	db := memoryDatabase(t)
	f := newFlow(t, db.publisher(t), func(msg *message.Message) ([]*message.Message, error) {
		produced, err := db.billing(msg)
		ended := outbox.ContextWithTx(context.Background(), db.LeasedStore, &memory.Tx{})
		produced[0].SetContext(ended)
		return produced, err
	}, db.dedup(t, "group"))
	require.NoError(t, f.deliver(newMessage("x", "")))
	_, pending := db.counts(t)
	require.Equal(t, map[string]int{"bill": 1}, pending)
}

func TestDeduplicator_ConsumerHandlersMustNotReturnMessages(t *testing.T) {
	db := memoryDatabase(t)
	_, err := db.dedup(t, "group")(db.billing)(newMessage("x", ""))
	require.ErrorIs(t, err, message.ErrOutputInNoPublisherHandler)
	require.ErrorContains(t, err, "not called by a router")
}

func TestNewDeduplicator_SaysWhatIsWrong(t *testing.T) {
	store := newMemory(t)
	for want, construct := range map[string]func() (*outbox.Deduplicator, error){
		"the store is nil":   func() (*outbox.Deduplicator, error) { return outbox.NewDeduplicator(nil, "g") },
		"the group is empty": func() (*outbox.Deduplicator, error) { return outbox.NewDeduplicator(store.Processed(), "") },
		"the publisher is nil": func() (*outbox.Deduplicator, error) {
			return outbox.NewDeduplicator(store.Processed(), "g", outbox.WithProducedPublisher(nil))
		},
		"the function is nil": func() (*outbox.Deduplicator, error) {
			return outbox.NewDeduplicator(store.Processed(), "g", outbox.WithMessageID(nil))
		},
		"Logger is nil": func() (*outbox.Deduplicator, error) {
			return outbox.NewDeduplicator(store.Processed(), "g", outbox.WithLogger(nil))
		},
		"WithEffectElsewhere()": func() (*outbox.Deduplicator, error) {
			return outbox.NewDeduplicator(struct{ outbox.ProcessedStore }{store.Processed()}, "g")
		},
	} {
		_, err := construct()
		require.ErrorContains(t, err, want)
	}
}

func TestRunProcessedCleanup_PurgesEveryInterval_WhateverFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db, log := memoryDatabase(t), watermill.NewCaptureLogger()
		mark := func(id string) {
			_, err := db.processed.MarkProcessed(t.Context(), nil, "g", id, nil)
			require.NoError(t, err)
		}
		mark("old")
		time.Sleep(time.Hour) // by the fake clock
		mark("new")
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			outbox.RunProcessedCleanup(ctx, &failsOnce{ProcessedStore: db.processed}, nil, 30*time.Minute, time.Minute,
				outbox.WithLogger(log))
		})
		synctest.Wait()
		require.True(t, db.isMarked(t, "g", "old"), "the first purge failed")
		require.True(t, log.HasError(errDown))
		time.Sleep(time.Minute)
		synctest.Wait()
		require.False(t, db.isMarked(t, "g", "old"))
		require.True(t, db.isMarked(t, "g", "new"))
		time.Sleep(30 * time.Minute)
		synctest.Wait()
		require.False(t, db.isMarked(t, "g", "new"))
		cancel()
		wg.Wait()
	})
}

type failsOnce struct {
	outbox.ProcessedStore
	failed bool
}

func (s *failsOnce) PurgeProcessedBefore(ctx context.Context, db any, t time.Time) (int64, error) {
	if !s.failed {
		s.failed = true
		return 0, errDown
	}
	return s.ProcessedStore.PurgeProcessedBefore(ctx, db, t)
}

func TestRunProcessedCleanup_EndsAtOnceAndSaysWhy_WhenItHasNothingToGoBy(t *testing.T) {
	store := newMemory(t).Processed()
	for name, run := range map[string]func(outbox.CleanupOption){
		"no retention": func(log outbox.CleanupOption) {
			outbox.RunProcessedCleanup(t.Context(), store, nil, 0, time.Hour, log)
		},
		"a negative interval": func(log outbox.CleanupOption) {
			outbox.RunProcessedCleanup(t.Context(), store, nil, time.Hour, -1, log)
		},
		"no store": func(log outbox.CleanupOption) {
			outbox.RunProcessedCleanup(t.Context(), nil, nil, time.Hour, time.Hour, nil, log)
		},
		"a nil store": func(log outbox.CleanupOption) {
			outbox.RunProcessedCleanup(t.Context(), (*memory.Processed)(nil), nil, time.Hour, time.Hour, log)
		},
	} {
		t.Run(name, func(t *testing.T) {
			log := watermill.NewCaptureLogger()
			run(outbox.WithLogger(log))
			require.Len(t, log.Captured()[watermill.InfoLogLevel], 1)
			require.Contains(t, log.Captured()[watermill.InfoLogLevel][0].Msg, "it needs a store, a retention and an interval")
		})
	}
}

func TestRunProcessedCleanup_DoesNotPanicWithoutALogger(t *testing.T) {
	store := newMemory(t).Processed()
	require.NotPanics(t, func() {
		outbox.RunProcessedCleanup(t.Context(), store, nil, 0, time.Hour, outbox.WithLogger(nil))
	})
}
