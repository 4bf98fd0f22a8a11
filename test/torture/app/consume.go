//go:build linux

package main

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/jackc/pgx/v5"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/test/history"
)

// group is that of the consumers.
const group = "billing"

// consume bills orders: it writes an effect and returns a bill.
func (a *app) consume(ctx context.Context) error {
	logger := watermill.NewSlogLogger(slog.New(slog.DiscardHandler))
	config := kafka.DefaultSaramaSubscriberConfig()
	config.Consumer.Offsets.Initial = sarama.OffsetOldest
	config.Consumer.Group.Session.Timeout = 2 * time.Second // others take over as soon
	config.Consumer.Group.Heartbeat.Interval = 500 * time.Millisecond
	config.Consumer.Group.Rebalance.Timeout = 2 * time.Second
	subscriber, err := kafka.NewSubscriber(kafka.SubscriberConfig{
		Brokers: []string{a.kafka}, Unmarshaler: keyed, ConsumerGroup: group, OverwriteSaramaConfig: config,
	}, logger)
	if err != nil {
		return err
	}
	router, err := message.NewRouter(message.RouterConfig{}, logger)
	if err != nil {
		return err
	}
	dedup, err := outbox.NewDeduplicator(a.store.Processed(), group)
	if err != nil {
		return err
	}
	returned, err := outbox.NewPublisher(a.store)
	if err != nil {
		return err
	}
	c := &consumer{app: a}
	router.AddMiddleware(c.record, dedup.Middleware, middleware.Timeout(transactTimeout))
	router.AddHandler("bill", orders, subscriber, bills, returned, c.bill)
	return router.Run(ctx)
}

// consumer bills orders. Each attempt has an output of its own, so that one of an attempt that was undone is a phantom.
type consumer struct {
	*app

	attempts atomic.Int64
}

// attemptKey is that of an attempt's name, a *string that the handler sets.
type attemptKey struct{}

// record tells of an attempt that has committed. How one has ended that failed, the table will tell.
func (c *consumer) record(next message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) ([]*message.Message, error) {
		attempt := ""
		msg.SetContext(context.WithValue(msg.Context(), attemptKey{}, &attempt))
		produced, err := next(msg)
		if err == nil && attempt != "" {
			c.recorder.Add(history.Event{Kind: history.Committed, Tx: attempt})
		}
		return produced, err
	}
}

func (c *consumer) bill(msg *message.Message) ([]*message.Message, error) {
	attempt := fmt.Sprintf("%s/%d", c.name, c.attempts.Add(1))
	if name, ok := msg.Context().Value(attemptKey{}).(*string); ok {
		*name = attempt
	}
	out := history.Message{ID: attempt + "-bill", Key: history.KeyOf(orders, msg)}
	c.recorder.Add(history.Event{Kind: history.Publishing, Tx: attempt, Messages: []history.Message{out}})
	tx, _ := c.store.TxFromContext(msg.Context())
	if err := effect(msg.Context(), tx, msg.UUID, out); err != nil {
		return nil, err
	}
	bill := message.NewMessage(out.ID, history.Payload(out.ID))
	if out.Key != "" {
		outbox.SetKey(bill, out.Key)
	}
	return []*message.Message{bill}, nil
}

func effect(ctx context.Context, tx pgx.Tx, input string, out history.Message) error {
	if _, err := tx.Exec(ctx, "INSERT INTO effects (input, output) VALUES ($1, $2)", input, out.ID); err != nil {
		return err
	}
	return note(ctx, tx, bills, []history.Message{out})
}
