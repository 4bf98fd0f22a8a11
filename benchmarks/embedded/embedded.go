// Package embedded measures an outbox in SQLite: this project against a loop that is written by hand, in one process and
// on one file each. Both have the settings of sqlite.Open: journal_mode WAL, synchronous FULL, so that a commit survives a
// power failure, transactions that begin IMMEDIATE, and a cache of prepared statements.
package embedded

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/watermill-outbox/outbox/store/sqlite"
)

// Way is an outbox in SQLite.
type Way struct {
	// Name tells it apart in results.
	Name string
	// About is what it is and how it is configured, for whoever reads the results: a sentence or two.
	About string

	table string // of its messages; see fill for the columns
	open  func(ctx context.Context, db *sql.DB) (box, error)
}

// box is a way at work in a database.
type box interface {
	// publish writes a message in the caller's transaction.
	publish(ctx context.Context, tx *sql.Tx, order order) error
	// drain publishes all that is there, and returns how many that were.
	drain(ctx context.Context, publisher message.Publisher) (int, error)
	close() error
}

// MeasureDrain commits n messages and then has them published to a publisher that does nothing. It returns messages a
// second (rate_per_s) and the CPU time of this process (cpu_s_per_million); and an error if not all were published or one
// is left. The file is a new one in dir, which is removed.
func MeasureDrain(ctx context.Context, dir string, way Way, n int) (metrics map[string]float64, err error) {
	err = way.use(ctx, dir, func(db *sql.DB, b box) error {
		if err := way.fill(ctx, db, n); err != nil {
			return fmt.Errorf("fill the outbox: %w", err)
		}
		var publisher counter
		before, begun := cpuTime(), time.Now()
		if _, err := b.drain(ctx, &publisher); err != nil {
			return fmt.Errorf("drain: %w", err)
		}
		took, cpu := time.Since(begun), cpuTime()-before
		left, err := way.count(ctx, db)
		if err != nil {
			return err
		}
		if published := int(publisher.calls.Load()); published != n || left != 0 {
			return fmt.Errorf("%d of %d messages were published, and %d are left", published, n, left)
		}
		metrics = map[string]float64{
			"rate_per_s":        float64(n) / took.Seconds(),
			"cpu_s_per_million": cpu.Seconds() / float64(n) * 1e6,
		}
		return nil
	})
	return metrics, err
}

// counter is a publisher to nowhere.
type counter struct{ calls atomic.Int64 }

func (c *counter) Publish(_ string, msgs ...*message.Message) error {
	c.calls.Add(int64(len(msgs)))
	return nil
}

func (c *counter) Close() error { return nil }

// MeasureCaller commits transactions for a time, one after the other, each with an order and its message. It returns how
// many a second (tx_per_s) and how long each took (p50_ms, p99_ms); and an error if not all of them are there in the end.
// Nothing relays. The file is a new one in dir, which is removed.
func MeasureCaller(ctx context.Context, dir string, way Way, d time.Duration) (metrics map[string]float64, err error) {
	err = way.use(ctx, dir, func(db *sql.DB, b box) error {
		if _, err := db.ExecContext(ctx, createOrders); err != nil {
			return fmt.Errorf("create the table of orders: %w", err)
		}
		latencies := hdrhistogram.New(1, time.Minute.Microseconds(), 3)
		n, begun := 0, time.Now()
		now := begun
		for until := begun.Add(d); now.Before(until); n++ {
			if err := place(ctx, db, b, newOrder(n)); err != nil {
				return fmt.Errorf("place an order: %w", err)
			}
			start := now
			now = time.Now()
			if err := latencies.RecordValue(now.Sub(start).Microseconds()); err != nil {
				return fmt.Errorf("record how long a transaction took: %w", err)
			}
		}
		if err := way.check(ctx, db, n); err != nil {
			return err
		}
		metrics = map[string]float64{
			"tx_per_s": float64(n) / now.Sub(begun).Seconds(),
			"p50_ms":   float64(latencies.ValueAtPercentile(50)) / 1000,
			"p99_ms":   float64(latencies.ValueAtPercentile(99)) / 1000,
		}
		return nil
	})
	return metrics, err
}

// place is the transaction of the application.
func place(ctx context.Context, db *sql.DB, b box, o order) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // it does nothing after a commit
	if _, err := tx.ExecContext(ctx, "INSERT INTO orders (customer, total) VALUES (?, 4200)", o.key); err != nil {
		return err
	}
	if err := b.publish(ctx, tx, o); err != nil {
		return err
	}
	return tx.Commit()
}

// use calls measure with a new database, and removes it.
func (w Way) use(ctx context.Context, dir string, measure func(db *sql.DB, b box) error) (err error) {
	dir, err = os.MkdirTemp(dir, "embedded-")
	if err != nil {
		return fmt.Errorf("make a directory for the database: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	db, err := sqlite.Open(filepath.Join(dir, "app.db"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	b, err := w.open(ctx, db)
	if err != nil {
		return fmt.Errorf("%s: %w", w.Name, err)
	}
	defer func() { err = errors.Join(err, b.close()) }()
	if err := measure(db, b); err != nil {
		return fmt.Errorf("%s: %w", w.Name, err)
	}
	return nil
}
