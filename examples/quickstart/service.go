package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/store/sqlite"
)

// serviceEnv, in the environment, makes this program the service. Its value is serviceSettings, as JSON.
const serviceEnv = "OUTBOX_QUICKSTART_SERVICE"

// serviceSettings are what the application tells the service.
type serviceSettings struct {
	Database    string        `json:"database"`
	Outage      time.Duration `json:"outage"`       // how long the broker is down; 0: never
	OutageAfter int           `json:"outage_after"` // messages that the broker accepts before that
	Verbose     bool          `json:"verbose"`
}

// runService is the main function of the service. It ends gracefully when its standard input ends, which also happens
// when the application dies.
func runService(encoded string) error {
	signal.Ignore(os.Interrupt) // a terminal interrupts both processes, and the application ends this one
	var settings serviceSettings
	if err := json.Unmarshal([]byte(encoded), &settings); err != nil {
		return fmt.Errorf("%s: %w", serviceEnv, err)
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	go func() { // ends with standard input, or with the process
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop()
	}()

	db, store, err := openStore(settings.Database, sqlite.WithLeaseTTL(leaseTTL))
	if err != nil {
		return fmt.Errorf("service: %w", err)
	}
	var logger watermill.LoggerAdapter = watermill.NopLogger{}
	if settings.Verbose {
		logger = watermill.NewSlogLogger(slog.New(slog.NewTextHandler(os.Stderr, nil)))
	}
	s := &service{
		store: store, broker: newBroker(settings, logger), logger: logger, journal: outbox.WithObserver(&journal{db}),
	}
	if err := errors.Join(s.run(ctx), store.Close(), db.Close()); err != nil {
		return fmt.Errorf("service: %w", err)
	}
	return nil
}

// service forwards messages to the broker and handles what comes from there. They would be two services, or many, with
// a broker that is a process of its own.
type service struct {
	store   *sqlite.Store
	broker  *broker
	logger  watermill.LoggerAdapter
	journal outbox.ObserverOption
}

// run runs until ctx ends.
//
// Go channels hold nothing for those who are not there: a message without a subscriber is dropped, and one that is
// being handled counts as delivered when the channels are closed. So the handler is there before the Forwarder starts
// and until after it has ended. With a broker that keeps messages the order does not matter, and instead of forward
// router.AddPlugin(forwarder.RouterPlugin) runs the Forwarder as long as the router.
func (s *service) run(ctx context.Context) error {
	router, err := message.NewRouter(message.RouterConfig{}, s.logger)
	if err != nil {
		return err
	}
	log := outbox.WithLogger(s.logger)
	if err := addHandler(router, s.store, s.broker, log, s.journal); err != nil {
		return err
	}
	routerEnded := make(chan error, 1)
	go func() { routerEnded <- router.Run(context.WithoutCancel(ctx)) }() // ends with Close
	select {
	case <-router.Running():
	case err := <-routerEnded:
		return fmt.Errorf("start the router: %w", err)
	}
	err = forward(ctx, s.store, s.broker, log, s.journal)
	return errors.Join(err, router.Close(), <-routerEnded)
}
