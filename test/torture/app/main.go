//go:build linux

// Command app is one process of an application with an outbox on PostgreSQL and Kafka, which package torture runs several of
// and does harm to: a producer, a relay or a consumer. It records what it does for package history.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/store/pgxstore"
	"github.com/watermill-outbox/outbox/test/history"
)

// Topics of the application. Orders are billed, events are not handled by anybody here.
const (
	orders = "orders"
	events = "events"
	bills  = "bills"
)

// app is what all roles have.
type app struct {
	name  string
	kafka string
	seed  uint64
	rate  int
	// concurrency is how many calls of Publish a relay makes at once.
	concurrency int
	pool        *pgxpool.Pool
	store       *pgxstore.Store
	recorder    *history.Recorder
}

var roles = map[string]func(a *app, ctx context.Context) error{
	"producer": (*app).produce,
	"relay":    (*app).relay,
	"consumer": (*app).consume,
}

func main() {
	a := &app{}
	role := flag.String("role", "", "producer, relay or consumer")
	database := flag.String("database", "", "`URL` of the PostgreSQL database")
	records := flag.String("records", "", "`folder` to record events in")
	ttl := flag.Duration("ttl", 0, "of leases")
	flag.StringVar(&a.name, "name", "", "of the process")
	flag.StringVar(&a.kafka, "kafka", "", "`host:port`")
	flag.Uint64Var(&a.seed, "seed", 1, "for what is drawn")
	flag.IntVar(&a.rate, "rate", 0, "messages a second")
	flag.IntVar(&a.concurrency, "concurrency", 0, "calls of Publish at once")
	flag.Parse()
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, nil)))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := a.run(ctx, *role, *database, *records, *ttl); err != nil {
		slog.Error("The process has ended", "process", a.name, "err", err)
		if errors.Is(err, errGaveUp) {
			os.Exit(2) //nolint:gocritic // nothing is left to stop
		}
		os.Exit(1)
	}
}

func (a *app) run(ctx context.Context, role, database, records string, ttl time.Duration) (err error) {
	run, known := roles[role]
	if !known {
		return fmt.Errorf("no role is called %q", role)
	}
	if a.recorder, err = history.Record(records, a.name); err != nil {
		return err
	}
	defer a.recorder.Close() //nolint:errcheck // each event was written when it happened
	config, err := pgxpool.ParseConfig(database)
	if err != nil {
		return err
	}
	if a.pool, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		return err
	}
	defer a.pool.Close()
	if a.store, err = pgxstore.New(a.pool, pgxstore.WithLeaseTTL(ttl)); err != nil {
		return err
	}
	return errors.Join(run(a, ctx), a.store.Close())
}

// producerConfig is what docs/brokers.md advises.
func producerConfig() *sarama.Config {
	config := kafka.DefaultSaramaSyncPublisherConfig()
	config.Producer.RequiredAcks = sarama.WaitForAll
	config.Producer.Retry.Max = 3
	config.Metadata.Retry.Max = 1
	config.Metadata.Retry.Backoff = 100 * time.Millisecond
	return config
}

// keyed marshals so that messages of one key get to one partition.
var keyed = kafka.NewWithPartitioningMarshaler(outbox.PartitionKey)
