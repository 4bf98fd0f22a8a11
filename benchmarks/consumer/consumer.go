// Package consumer measures what it costs to handle messages once: how many handlers a second run on PostgreSQL, with
// this project's Deduplicator and with what people would pick instead.
package consumer

import (
	"context"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Way is a way to handle messages that are delivered more than once.
type Way struct {
	// Name tells it apart in results.
	Name string
	// About is what it is and how it is configured, for whoever reads the results: a sentence or two.
	About string
	// New makes a handler of messages around handle, which runs in a transaction. Its tables are there, and empty.
	New func(ctx context.Context, pool *pgxpool.Pool, handle Handle) (message.HandlerFunc, error)

	// record counts what the database knows to be handled; it is empty where that is nothing.
	record string
	// repeats tells that redeliveries are handled like everything else.
	repeats bool
}

// Handle is what the application does with a message, whatever is around it.
type Handle func(ctx context.Context, tx pgx.Tx, msg *message.Message) error

// insertEffect is the handler of the scenario.
func insertEffect(ctx context.Context, tx pgx.Tx, msg *message.Message) error {
	_, err := tx.Exec(ctx, "INSERT INTO effects (message, total) VALUES ($1, 4200)", msg.UUID)
	return err
}

// Measure delivers messages to one handler by so many clients at once for a time, every tenth of them an earlier one
// again. It returns the deliveries a second (handlers_per_s), and how long they took (p50_ms, p99_ms); and an error if the
// tables do not hold in the end what they must. The pool needs a connection for each client, and a database that only the
// benchmarks use: tables that are called effects, processed and outbox_processed are emptied.
func Measure(
	ctx context.Context, pool *pgxpool.Pool, way Way, clients int, d time.Duration,
) (metrics map[string]float64, err error) {
	if most := int(pool.Config().MaxConns); most < clients {
		return nil, fmt.Errorf("a pool of %d connections is too small for %d clients", most, clients)
	}
	if err := createTables(ctx, pool); err != nil {
		return nil, fmt.Errorf("create the tables of the consumer: %w", err)
	}
	handle, err := way.New(ctx, pool, insertEffect)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", way.Name, err)
	}
	if err := connect(ctx, pool, clients); err != nil {
		return nil, err
	}
	l, err := newLoad(ctx, handle)
	if err != nil {
		return nil, err
	}
	begun := time.Now()
	latencies, err := l.run(ctx, clients, d)
	took := time.Since(begun)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", way.Name, err)
	}
	if err := check(ctx, pool, way, l.deliveries()); err != nil {
		return nil, fmt.Errorf("%s: %w", way.Name, err)
	}
	return map[string]float64{
		"handlers_per_s": float64(l.deliveries()) / took.Seconds(),
		"p50_ms":         float64(latencies.ValueAtPercentile(50)) / 1000,
		"p99_ms":         float64(latencies.ValueAtPercentile(99)) / 1000,
	}, nil
}

// connect makes the pool's connections before anything is measured.
func connect(ctx context.Context, pool *pgxpool.Pool, n int) error {
	for range n {
		conn, err := pool.Acquire(ctx)
		if err != nil {
			return fmt.Errorf("connect: %w", err)
		}
		defer conn.Release()
	}
	return nil
}
