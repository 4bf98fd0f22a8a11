// Command shop is an HTTP service on PostgreSQL that takes orders and handles them by messages: placed, billed, shipped.
// Begin one of your own from it.
//
//	go run ./examples/shop
//
// In the order of an order's life: place in api.go publishes, serve here forwards, bill in handlers.go consumes.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/watermill-outbox/outbox"
)

const (
	defaultDatabase = "postgres://postgres@127.0.0.1:25432/postgres"
	defaultKafka    = "127.0.0.1:19092"
	defaultAddr     = "127.0.0.1:8080"
	defaultSchema   = "shop"
	defaultTopics   = "shop"

	// requestTimeout is how long a request, or an attempt to handle a message, may take.
	requestTimeout = 5 * time.Second
	// stopTimeout bounds each of the three steps of a stop. Kubernetes kills after 30 s.
	stopTimeout = 8 * time.Second
	// processedRetention is well above the longest time after which a broker may deliver a message again.
	processedRetention = 7 * 24 * time.Hour
)

func main() {
	database := flag.String("database", "", "`URL` of the PostgreSQL database (default $DATABASE_URL, or "+defaultDatabase+")")
	addr := flag.String("addr", "", "`host:port` to serve HTTP on (default $ADDR, or "+defaultAddr+")")
	schema := flag.String("schema", "", "`schema` of all tables, created if missing (default $SCHEMA, or "+defaultSchema+")")
	kafka := flag.String("kafka", "", "`host:port` of Kafka's brokers, with commas (default $KAFKA, or "+defaultKafka+")")
	topics := flag.String("topics", "", "`prefix` of topics and consumer groups (default $TOPICS, or "+defaultTopics+")")
	flag.Parse()
	*database = cmp.Or(*database, os.Getenv("DATABASE_URL"), defaultDatabase) // here, so that -h shows no password
	*addr = cmp.Or(*addr, os.Getenv("ADDR"), defaultAddr)
	*schema = cmp.Or(*schema, os.Getenv("SCHEMA"), defaultSchema)
	*kafka = cmp.Or(*kafka, os.Getenv("KAFKA"), defaultKafka)
	*topics = cmp.Or(*topics, os.Getenv("TOPICS"), defaultTopics)

	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, nil))) // the outbox logs there by itself
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // so that a second signal ends the process at once
	if err := run(ctx, *database, *schema, *kafka, *topics, *addr); err != nil {
		slog.Error("The shop has ended", "err", err)
		os.Exit(1)
	}
}

// run makes what a shop consists of, and has it serve until ctx ends.
func run(ctx context.Context, database, schema, kafka, name, addr string) error {
	// Two pools, so that the Forwarder gets a connection in time to renew its leases, however many requests wait for one.
	requests, err := openPool(ctx, database, schema)
	if err != nil {
		return err
	}
	defer requests.Close()
	messages, err := openPool(ctx, database, schema)
	if err != nil {
		return err
	}
	defer messages.Close()
	store, err := openStore(ctx, messages, schema)
	if err != nil {
		return fmt.Errorf("prepare the database: %w", err)
	}
	publisher, err := newPublisher(kafka)
	if err != nil {
		return err
	}
	defer publisher.Close() //nolint:errcheck // nothing is being published any more
	router, err := newRouter(store, func(handler, topic string) (message.Subscriber, error) {
		return newSubscriber(kafka, name+"."+handler, topic)
	}, topicsOf(name))
	if err != nil {
		return err
	}
	forwarder, err := outbox.NewForwarder(store, publisher,
		outbox.WithCloseTimeout(stopTimeout), outbox.WithPermanentError(isPermanent))
	if err != nil {
		return err
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: newAPI(requests, store, topicsOf(name)), ReadTimeout: requestTimeout}
	return serve(ctx, listener, server, router, forwarder, store.Processed())
}

// serve serves until ctx ends, or something that should not. Then it finishes what is under way.
func serve(
	ctx context.Context, listener net.Listener, server *http.Server, router *message.Router, forwarder *outbox.Forwarder,
	processed outbox.ProcessedStore,
) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	background := context.WithoutCancel(ctx) // for those that end in their turn, below
	var running sync.WaitGroup
	ended := make(chan error, 3)
	start := func(name string, run func() error) {
		running.Go(func() { ended <- errors.Join(errors.New("the "+name+" has ended"), run()) })
	}
	start("router", func() error { return router.Run(background) })
	select {
	case <-router.Running(): // and everybody has subscribed
	case <-ctx.Done():
		return nil
	case err := <-ended:
		return err
	}
	start("forwarder", func() error { return forwarder.Run(background) })
	start("server", func() error { return server.Serve(listener) })
	running.Go(func() { outbox.RunProcessedCleanup(ctx, processed, nil, processedRetention, time.Hour) })
	slog.Info("Taking orders", "addr", listener.Addr().String())

	var err error
	select {
	case <-ctx.Done():
		slog.Info("Stopping")
	case err = <-ended:
	}
	// Who publishes ends first, then who forwards, then who handles. What the outbox still has is for the next start.
	deadline, stop := context.WithTimeout(background, stopTimeout)
	defer stop()
	err = errors.Join(err, server.Shutdown(deadline), forwarder.Close(), router.Close())
	cancel()
	running.Wait()
	return err
}
