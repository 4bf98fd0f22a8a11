//go:build linux

// Command embedded is an application with an outbox in a SQLite file, all of it in one process: it produces, relays and
// handles. Package torture does harm to it, and to a second one on the same file. Its broker is a file that grows.
package main

import (
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/store/sqlite"
	"github.com/watermill-outbox/outbox/test/history"
)

const (
	orders, bills, group = "orders", "bills", "billing"

	writers    = 4
	aggregates = 40
	// pause is how long a writer waits between two transactions, on average.
	pause = 20 * time.Millisecond
	// relayPause is how long an instance waits that could not open the file, or has been thrown out.
	relayPause = 50 * time.Millisecond
)

// app is what the parts of the process have in common.
type app struct {
	name        string
	concurrency int
	db          *sql.DB
	store       *sqlite.Store
	recorder    *history.Recorder
	broker      *fileBroker
	begun       atomic.Int64
}

func main() {
	a := &app{}
	folder := flag.String("records", "", "`folder` of the database, of the broker's file and of what is recorded")
	ttl := flag.Duration("ttl", 0, "of leases")
	seed := flag.Uint64("seed", 1, "for what is drawn")
	quiet := flag.Bool("quiet", false, "produce nothing")
	flag.StringVar(&a.name, "name", "", "of the process")
	flag.IntVar(&a.concurrency, "concurrency", 0, "calls of Publish at once")
	flag.Parse()
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, nil)))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := a.run(ctx, *folder, *ttl, *seed, *quiet); err != nil {
		slog.Error("The process has ended", "process", a.name, "err", err)
		os.Exit(1) //nolint:gocritic // nothing is left to stop
	}
}

func (a *app) run(ctx context.Context, folder string, ttl time.Duration, seed uint64, quiet bool) (err error) {
	if a.recorder, err = history.Record(folder, a.name); err != nil {
		return err
	}
	defer a.recorder.Close() //nolint:errcheck // each event was written when it happened
	if a.db, err = sqlite.Open(filepath.Join(folder, "app.db")); err != nil {
		return err
	}
	defer a.db.Close() //nolint:errcheck // everything has been committed
	if a.store, err = sqlite.New(a.db, sqlite.WithLeaseTTL(ttl)); err != nil {
		return err
	}
	defer a.store.Close() //nolint:errcheck // the relay has ended
	if err := a.store.Migrate(ctx); ctx.Err() != nil {
		return nil // it was told to end before it had begun
	} else if err != nil {
		return err
	}
	if a.broker, err = openBroker(filepath.Join(folder, "broker")); err != nil {
		return err
	}
	defer a.broker.Close() //nolint:errcheck // it is a file
	var all sync.WaitGroup
	for i := range writers {
		random := rand.New(rand.NewPCG(seed, uint64(i))) //nolint:gosec // what is drawn is no secret
		all.Go(func() {
			for !quiet && sleep(ctx, time.Duration(random.ExpFloat64()*float64(pause))) {
				_ = a.produce(context.WithoutCancel(ctx), random) // the tables tell
			}
		})
	}
	consumed := make(chan error, 1)
	consuming, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	go func() { consumed <- a.consume(consuming, filepath.Join(folder, "offset")) }()
	err = a.relay(ctx)
	stop()
	all.Wait()
	return errors.Join(err, <-consumed)
}

func (a *app) relay(ctx context.Context) error {
	for {
		forwarder, err := outbox.NewForwarder(a.store, a.recorder.Publisher(a.broker), outbox.WithConcurrency(a.concurrency),
			outbox.WithObserver(outbox.ObserverFunc(a.recorder.Observe)))
		if err != nil {
			return err
		}
		if err := forwarder.Run(ctx); err != nil {
			slog.Error("The relay has ended", "err", err)
		}
		if !sleep(ctx, relayPause) {
			return nil
		}
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// produce changes an aggregate and publishes what has changed.
func (a *app) produce(ctx context.Context, random *rand.Rand) (err error) {
	name := fmt.Sprintf("%s/%d", a.name, a.begun.Add(1))
	tx, err := a.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	ended := false
	defer func() {
		if !ended {
			_ = tx.Rollback() // without a COMMIT there is nothing else it could do
			a.recorder.Add(history.Event{Kind: history.RolledBack, Tx: name})
		}
	}()
	aggregate, n := random.IntN(aggregates), 1+random.IntN(5)
	var version int64
	if err := tx.QueryRowContext(ctx, `INSERT INTO aggregates (id, version) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET
		version = version + excluded.version RETURNING version`, aggregate, n).Scan(&version); err != nil {
		return err
	}
	msgs, published := make([]history.Message, n), make([]*message.Message, n)
	for i := range msgs {
		m := history.Message{
			ID: fmt.Sprintf("%s-%d", name, i), Key: fmt.Sprintf("aggregate-%d", aggregate), Number: version - int64(n) + int64(i) + 1,
		}
		if err := note(ctx, tx, orders, m); err != nil {
			return err
		}
		msgs[i], published[i] = m, message.NewMessage(m.ID, history.Payload(m.ID))
		outbox.SetKey(published[i], m.Key)
	}
	a.recorder.Add(history.Event{Kind: history.Publishing, Tx: name, Messages: msgs})
	if err := a.store.Publisher(tx).Publish(orders, published...); err != nil {
		return err
	}
	if random.IntN(10) == 0 {
		return nil
	}
	ended = true
	a.recorder.Add(history.Event{Kind: history.Committing, Tx: name})
	if err := tx.Commit(); err != nil {
		return err // whether it has committed, the table will tell
	}
	a.recorder.Add(history.Event{Kind: history.Committed, Tx: name})
	return nil
}

// note writes down that the transaction publishes a message.
func note(ctx context.Context, tx *sql.Tx, topic string, m history.Message) error {
	_, err := tx.ExecContext(ctx, "INSERT INTO sent (id, key, number, topic) VALUES (?, ?, ?, ?)", m.ID, m.Key, m.Number, topic)
	return err
}

// consume bills the orders in the broker's file, from where it was when the offset was last written down.
func (a *app) consume(ctx context.Context, offsets string) error {
	dedup, err := outbox.NewDeduplicator(a.store.Processed(), group)
	if err != nil {
		return err
	}
	handle := dedup.Middleware(a.bill)
	return a.broker.follow(ctx, offsets, func(topic string, msg *message.Message) {
		for attempt := 0; topic == orders && ctx.Err() == nil; attempt++ {
			msg.SetContext(ctx)
			if _, err := handle(msg); err == nil {
				return
			}
			time.Sleep(time.Millisecond << min(attempt, 8)) // as a broker would deliver it again
		}
	})
}

func (a *app) bill(msg *message.Message) ([]*message.Message, error) {
	ctx := msg.Context()
	tx, _ := a.store.TxFromContext(ctx)
	name := fmt.Sprintf("%s/%d", a.name, a.begun.Add(1))
	out := history.Message{ID: name + "-bill", Key: history.KeyOf(orders, msg)}
	if _, err := tx.ExecContext(ctx, "INSERT INTO effects (input, output) VALUES (?, ?)", msg.UUID, out.ID); err != nil {
		return nil, err
	}
	if err := note(ctx, tx, bills, out); err != nil {
		return nil, err
	}
	a.recorder.Add(history.Event{Kind: history.Publishing, Tx: name, Messages: []history.Message{out}})
	bill := message.NewMessage(out.ID, history.Payload(out.ID))
	outbox.SetKey(bill, out.Key)
	return nil, a.store.Publisher(tx).Publish(bills, bill)
}
