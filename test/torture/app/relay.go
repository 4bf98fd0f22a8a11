//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"

	"github.com/watermill-outbox/outbox"
)

// relay forwards from the outbox to Kafka.
func (a *app) relay(ctx context.Context) error {
	a.haveTheWrongTime()
	publisher, err := kafka.NewPublisher(kafka.PublisherConfig{
		Brokers: []string{a.kafka}, Marshaler: keyed, OverwriteSaramaConfig: producerConfig(),
	}, watermill.NopLogger{})
	if err != nil {
		return err
	}
	forwarder, err := outbox.NewForwarder(a.store, a.recorder.Publisher(publisher), outbox.WithConcurrency(a.concurrency),
		outbox.WithObserver(outbox.ObserverFunc(a.recorder.Observe)))
	if err != nil {
		return err
	}
	err = forwarder.Run(ctx)
	switch {
	case errors.Is(err, outbox.ErrNotMigrated): // the tables are made a little later
	case err != nil && ctx.Err() == nil:
		err = fmt.Errorf("%w: %w", errGaveUp, err)
	}
	return errors.Join(err, publisher.Close())
}

// errGaveUp is that of a relay whose Forwarder has ended though nobody has told it to, which none should in any trouble.
var errGaveUp = errors.New("the Forwarder has ended")

// haveTheWrongTime sets this process's clock to another one up to ten minutes away, and again at each SIGUSR1.
func (a *app) haveTheWrongTime() {
	random := rand.New(rand.NewPCG(a.seed, 0)) //nolint:gosec // what is drawn is no secret
	jumps := make(chan os.Signal, 1)
	signal.Notify(jumps, syscall.SIGUSR1)
	go func() { // it ends with the process
		for {
			setClockAhead(time.Duration(random.Int64N(int64(20*time.Minute))) - 10*time.Minute)
			<-jumps
		}
	}()
}
