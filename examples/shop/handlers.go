package main

import (
	"encoding/json"
	"errors"
	"log/slog"
	"strconv"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/jackc/pgx/v5"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/store/pgxstore"
)

// topics are the names that the shop's events have at the broker.
type topics struct{ placed, billed, poisoned string }

func topicsOf(shop string) topics {
	return topics{shop + ".placed", shop + ".billed", shop + ".poisoned"}
}

// subscribe returns the subscriber of a handler to a topic.
type subscribe func(handler, topic string) (message.Subscriber, error)

// event is what happened to an order. The topic says what.
type event struct {
	OrderID int64 `json:"order_id"`
	Amount  int64 `json:"amount"` // in cents
}

func (e event) message() (*message.Message, error) {
	payload, err := json.Marshal(e)
	if err != nil {
		return nil, err
	}
	msg := message.NewMessage(watermill.NewUUID(), payload)
	outbox.SetKey(msg, strconv.FormatInt(e.OrderID, 10)) // the events of one order stay in order
	return msg, nil
}

// newRouter has each message handled once. The order of the middleware matters: what retries and gives up is outside of
// the Deduplicator, so that each attempt has a transaction of its own; what limits an attempt is inside.
func newRouter(store *pgxstore.Store, subscribe subscribe, topics topics) (*message.Router, error) {
	logger := watermill.NewSlogLogger(nil)
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: stopTimeout}, logger)
	if err != nil {
		return nil, err
	}
	// What is poisoned goes through the outbox, too. While the database is down it cannot, and comes again: no outage
	// poisons anything.
	poison, err := outbox.NewPublisher(store, outbox.WithOwnTx())
	if err != nil {
		return nil, err
	}
	poisonQueue, err := middleware.PoisonQueue(poison, topics.poisoned)
	if err != nil {
		return nil, err
	}
	retry := middleware.Retry{
		MaxRetries: 4, InitialInterval: 50 * time.Millisecond, Multiplier: 3, MaxInterval: time.Second,
		ResetContextOnRetry: true, Logger: logger,
	}
	dedup, err := outbox.NewDeduplicator(store.Processed(), "shop")
	if err != nil {
		return nil, err
	}
	router.AddMiddleware(
		poisonQueue, retry.Middleware, middleware.Recoverer, dedup.Middleware, middleware.Timeout(requestTimeout),
	)
	returned, err := outbox.NewPublisher(store)
	if err != nil {
		return nil, err
	}
	placed, err1 := subscribe("bill-order", topics.placed)
	billed, err2 := subscribe("ship-order", topics.billed)
	poisoned, err3 := subscribe("give-up-order", topics.poisoned)
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, err
	}
	h := handlers{store}
	router.AddHandler("bill-order", topics.placed, placed, topics.billed, returned, h.bill)
	router.AddConsumerHandler("ship-order", topics.billed, billed, h.ship)
	router.AddConsumerHandler("give-up-order", topics.poisoned, poisoned, h.giveUp)
	return router, nil
}

type handlers struct{ store *pgxstore.Store }

// bill writes in the transaction that the Deduplicator has begun. What it returns goes to the outbox in the same one.
func (h handlers) bill(msg *message.Message) ([]*message.Message, error) {
	var placed event
	if err := json.Unmarshal(msg.Payload, &placed); err != nil {
		return nil, err
	}
	tx, err := h.setStatus(msg, placed.OrderID, "billed")
	if err != nil {
		return nil, err
	}
	const insert = `INSERT INTO bills (order_id, amount) VALUES ($1, $2)`
	if _, err := tx.Exec(msg.Context(), insert, placed.OrderID, placed.Amount); err != nil {
		return nil, err
	}
	billed, err := placed.message()
	return message.Messages{billed}, err
}

func (h handlers) ship(msg *message.Message) error {
	var billed event
	if err := json.Unmarshal(msg.Payload, &billed); err != nil {
		return err
	}
	_, err := h.setStatus(msg, billed.OrderID, "shipped")
	return err
}

// giveUp gets what the others could not handle. Whatever is wrong with the message, its key is the order's id.
func (h handlers) giveUp(msg *message.Message) error {
	slog.Error("An order needs somebody to look at it", "order", outbox.Key(msg),
		"handler", msg.Metadata.Get(middleware.PoisonedHandlerKey), "err", msg.Metadata.Get(middleware.ReasonForPoisonedKey))
	id, _ := strconv.ParseInt(outbox.Key(msg), 10, 64) // there is no order 0
	_, err := h.setStatus(msg, id, "failed")
	return err
}

func (h handlers) setStatus(msg *message.Message, id int64, status string) (pgx.Tx, error) {
	tx, ok := h.store.TxFromContext(msg.Context())
	if !ok {
		return nil, errors.New("the message carries no transaction: is the Deduplicator among the middleware?")
	}
	_, err := tx.Exec(msg.Context(), `UPDATE orders SET status = $2 WHERE id = $1`, id, status)
	return tx, err
}
