package outbox_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/internal/abtest"
	"github.com/watermill-outbox/outbox/store/sqlite"
)

// The benchmarks here are comparisons: each iteration runs ours and a baseline, one after the other, and what is
// reported are the medians and the median of their ratios. A machine that is slow or busy is so for both.

// What is required: the speed of the work done by hand, at least so much of it.
const (
	drainTarget   = 0.8
	millionTarget = 0.9
	millionPeakMB = 150 // at most
	publishTarget = 0.8
	dedupTarget   = 0.91
)

type nopPublisher struct{}

func (nopPublisher) Publish(string, ...*message.Message) error { return nil }
func (nopPublisher) Close() error                              { return nil }

// benchSQLite returns an outbox in a fresh file.
func benchSQLite(b *testing.B) (*sqlite.Store, *sql.DB) {
	b.Helper()
	db, err := sqlite.Open(filepath.Join(b.TempDir(), "outbox.db?_synchronous=NORMAL"))
	require.NoError(b, err)
	b.Cleanup(func() { require.NoError(b, db.Close()) })
	store, err := sqlite.New(db)
	require.NoError(b, err)
	require.NoError(b, store.Migrate(b.Context()))
	b.Cleanup(func() { require.NoError(b, store.Close()) })
	return store, db
}

// fillSQLite commits a backlog of n messages over 10,000 keys.
func fillSQLite(b *testing.B, db *sql.DB, n int) {
	b.Helper()
	_, err := db.ExecContext(b.Context(), `
		WITH RECURSIVE numbers (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM numbers WHERE i < ?)
		INSERT INTO outbox_messages (topic, key, payload, headers)
		SELECT 'orders.placed', 'order-' || (i % 10000), CAST(printf('{"order": %d, "note": "%0100d"}', i, i) AS BLOB),
		       '{"correlation_id":"' || lower(hex(randomblob(8))) || '","name":"OrderPlaced"}'
		FROM numbers`, n)
	require.NoError(b, err)
	_, err = db.ExecContext(b.Context(), "PRAGMA wal_checkpoint(TRUNCATE)")
	require.NoError(b, err)
}

func BenchmarkDrain_OverSQLite_AgainstALoopByHand(b *testing.B) {
	const n = 100_000
	for _, batch := range []int{100, 1000} {
		b.Run("batch="+strconv.Itoa(batch), func(b *testing.B) {
			store, db := benchSQLite(b)
			abtest.Compare(b, n, drainTarget, func(b *testing.B) time.Duration {
				fillSQLite(b, db, n)
				f, err := outbox.NewForwarder(store, nopPublisher{}, outbox.WithBatchSize(batch),
					outbox.WithLogger(watermill.NopLogger{}))
				require.NoError(b, err)
				begun := time.Now()
				published, err := f.Drain(b.Context())
				took := time.Since(begun)
				require.NoError(b, err)
				require.Equal(b, n, published)
				return took
			}, func(b *testing.B) time.Duration {
				fillSQLite(b, db, n)
				begun := time.Now()
				require.Equal(b, n, drainByHand(b, db, nopPublisher{}, batch))
				return time.Since(begun)
			})
		})
	}
}

func BenchmarkDrain_OverSQLite_OfAMillion_AgainstAHundredThousand(b *testing.B) {
	const many, few = 1_000_000, 100_000
	store, db := benchSQLite(b)
	f, err := outbox.NewForwarder(store, nopPublisher{}, outbox.WithLogger(watermill.NopLogger{}))
	require.NoError(b, err)
	forgetPeak(b)
	drain := func(b *testing.B, n int) time.Duration {
		b.Helper()
		fillSQLite(b, db, n)
		begun := time.Now()
		published, err := f.Drain(b.Context())
		require.NoError(b, err)
		require.Equal(b, n, published)
		return time.Since(begun)
	}
	abtest.Compare(b, many, millionTarget, func(b *testing.B) time.Duration {
		return drain(b, many)
	}, func(b *testing.B) time.Duration {
		return drain(b, few) * (many / few)
	})
	b.ReportMetric(peak(b), "peak-MB")
	abtest.HoldTo(b, "peak-MB", millionPeakMB, peak(b) <= millionPeakMB)
}

// forgetPeak makes peak count from now on. Both work on Linux only.
func forgetPeak(b *testing.B) {
	b.Helper()
	runtime.GC()
	debug.FreeOSMemory()
	_ = os.WriteFile("/proc/self/clear_refs", []byte("5"), 0) // see proc(5); without the right to it, peak is too high
}

// peak returns the most memory that the process has had resident, in MB.
func peak(b *testing.B) float64 {
	b.Helper()
	status, err := os.ReadFile("/proc/self/status")
	require.NoError(b, err)
	var kb float64
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	_, err = fmt.Sscan(rest, &kb)
	require.NoError(b, err)
	return kb / 1024
}

// drainByHand is the loop that people write: select a batch, decode, publish, delete it.
func drainByHand(b *testing.B, db *sql.DB, publisher message.Publisher, batch int) (published int) {
	b.Helper()
	read, err := db.PrepareContext(b.Context(), `SELECT id, uuid, topic, key, payload, headers FROM outbox_messages
		ORDER BY id LIMIT ?`)
	require.NoError(b, err)
	defer read.Close() //nolint:errcheck // it was only read
	remove, err := db.PrepareContext(b.Context(), `DELETE FROM outbox_messages WHERE id <= ?`)
	require.NoError(b, err)
	defer remove.Close() //nolint:errcheck // its statements have succeeded
	for {
		last, count, err := publishBatch(b.Context(), read, publisher, batch)
		require.NoError(b, err)
		if count == 0 {
			return published
		}
		_, err = remove.ExecContext(b.Context(), last)
		require.NoError(b, err)
		published += count
	}
}

func publishBatch(ctx context.Context, read *sql.Stmt, publisher message.Publisher, batch int) (last int64, count int, err error) {
	rows, err := read.QueryContext(ctx, batch)
	if err != nil {
		return 0, 0, err
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells more
	for ; rows.Next(); count++ {
		var uuid, topic, key string
		var payload, headers []byte
		if err := rows.Scan(&last, &uuid, &topic, &key, &payload, &headers); err != nil {
			return 0, 0, err
		}
		msg := message.NewMessage(uuid, payload)
		if err := json.Unmarshal(headers, &msg.Metadata); err != nil {
			return 0, 0, err
		}
		outbox.SetKey(msg, key)
		if err := publisher.Publish(topic, msg); err != nil {
			return 0, 0, err
		}
	}
	return last, count, rows.Err()
}

func BenchmarkPublish_OverSQLite_AgainstAnInsertByHand(b *testing.B) {
	const n = 1000
	store, _ := benchSQLite(b)
	pub, err := outbox.NewPublisher(store)
	require.NoError(b, err)
	newMessage := func() *message.Message {
		msg := message.NewMessage(watermill.NewUUID(), []byte(`{"order": 42}`))
		msg.Metadata.Set("correlation_id", "9b1c2d3e4f")
		msg.Metadata.Set("name", "OrderPlaced")
		return msg
	}
	inTx := func(b *testing.B, call func(ctx context.Context, tx *sql.Tx) error) (took time.Duration) {
		b.Helper()
		require.NoError(b, store.InTx(context.Background(), func(ctx context.Context, tx *sql.Tx) error {
			begun := time.Now()
			for range n {
				if err := call(ctx, tx); err != nil {
					return err
				}
			}
			took = time.Since(begun)
			return nil
		}))
		return took
	}
	abtest.Compare(b, n, publishTarget, func(b *testing.B) time.Duration {
		return inTx(b, func(ctx context.Context, _ *sql.Tx) error {
			msg := newMessage()
			outbox.SetKey(msg, "order-42")
			msg.SetContext(ctx)
			return pub.Publish("orders.placed", msg)
		})
	}, func(b *testing.B) time.Duration {
		return inTx(b, func(ctx context.Context, tx *sql.Tx) error {
			msg := newMessage()
			headers, err := json.Marshal(msg.Metadata)
			if err != nil {
				return err
			}
			_, err = tx.ExecContext(ctx, `INSERT INTO outbox_messages (uuid, topic, key, payload, headers)
				VALUES (?, ?, ?, ?, ?)`, msg.UUID, "orders.placed", "order-42", []byte(msg.Payload), string(headers))
			return err
		})
	})
}

func BenchmarkDeduplicator_OverSQLite_AgainstAHandlerByHand(b *testing.B) {
	const n = 1000
	store, db := benchSQLite(b)
	_, err := db.ExecContext(b.Context(), "CREATE TABLE effects (id INTEGER PRIMARY KEY, message TEXT)")
	require.NoError(b, err)
	dedup, err := outbox.NewDeduplicator(store.Processed(), "bench", outbox.WithLogger(watermill.NopLogger{}))
	require.NoError(b, err)
	each := func(b *testing.B, handle message.HandlerFunc) time.Duration {
		b.Helper()
		begun := time.Now()
		for range n {
			if _, err := handle(message.NewMessage(watermill.NewUUID(), []byte(`{"order": 42}`))); err != nil {
				b.Fatal(err)
			}
		}
		return time.Since(begun)
	}
	effect := func(ctx context.Context, tx *sql.Tx, msg *message.Message) error {
		_, err := tx.ExecContext(ctx, "INSERT INTO effects (message) VALUES (?)", msg.UUID)
		return err
	}
	abtest.Compare(b, n, dedupTarget, func(b *testing.B) time.Duration {
		return each(b, dedup.Middleware(func(msg *message.Message) ([]*message.Message, error) {
			tx, _ := store.TxFromContext(msg.Context())
			return nil, effect(msg.Context(), tx, msg)
		}))
	}, func(b *testing.B) time.Duration {
		return each(b, func(msg *message.Message) ([]*message.Message, error) {
			return nil, handleByHand(db, msg, effect)
		})
	})
}

// handleByHand is an idempotent handler as people write it.
func handleByHand(db *sql.DB, msg *message.Message, effect func(context.Context, *sql.Tx, *message.Message) error) error {
	ctx := msg.Context()
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // it does nothing after a commit
	result, err := tx.ExecContext(ctx, `INSERT INTO outbox_processed (consumer_group, message_id) VALUES (?, ?)
		ON CONFLICT DO NOTHING`, "bench", msg.UUID)
	if err != nil {
		return err
	}
	inserted, err := result.RowsAffected()
	if err != nil || inserted == 0 {
		return err
	}
	if err := effect(ctx, tx, msg); err != nil {
		return err
	}
	return tx.Commit()
}
