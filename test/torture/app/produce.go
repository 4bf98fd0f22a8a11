//go:build linux

package main

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/components/delay"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/test/history"
)

const (
	writers = 16
	// aggregates are rows that a transaction locks, and the keys of what it publishes.
	aggregates = 400
	// usualSize is how many messages a transaction publishes on average.
	usualSize = 10
	// transactTimeout is after how long a transaction is given up whose connection may be half-open.
	transactTimeout = 10 * time.Second
)

// producer changes aggregates, and publishes what has changed.
type producer struct {
	*app

	begun atomic.Int64
}

func (a *app) produce(ctx context.Context) error {
	p := &producer{app: a}
	var all sync.WaitGroup
	for i := range writers {
		random := rand.New(rand.NewPCG(a.seed, uint64(i))) //nolint:gosec // what is drawn is no secret
		all.Go(func() {
			pause := float64(time.Second) * writers * usualSize / float64(a.rate)
			for ctx.Err() == nil {
				time.Sleep(time.Duration(random.ExpFloat64() * pause))
				if err := p.transact(context.WithoutCancel(ctx), random); err != nil && random.IntN(50) == 0 {
					slog.Info("A transaction has failed", "err", err)
				}
			}
		})
	}
	all.Wait()
	return nil
}

func (p *producer) transact(ctx context.Context, random *rand.Rand) error {
	ctx, cancel := context.WithTimeout(ctx, transactTimeout)
	defer cancel()
	tx, err := p.pool.Begin(ctx)
	if err != nil {
		return err
	}
	name := fmt.Sprintf("%s/%d", p.name, p.begun.Add(1))
	topic, msgs, err := p.prepare(ctx, tx, name, random)
	if err == nil {
		p.recorder.Add(history.Event{Kind: history.Publishing, Tx: name, Messages: msgs})
		err = p.store.Publisher(tx).Publish(topic, toPublish(msgs)...)
	}
	hold(random)
	if err != nil || random.IntN(20) == 0 {
		_ = tx.Rollback(ctx) // without a COMMIT there is nothing else it could do
		p.recorder.Add(history.Event{Kind: history.RolledBack, Tx: name})
		return err
	}
	p.recorder.Add(history.Event{Kind: history.Committing, Tx: name})
	if err := tx.Commit(ctx); err != nil {
		return err // whether it has committed, the table will tell
	}
	p.recorder.Add(history.Event{Kind: history.Committed, Tx: name})
	return nil
}

// hold is short mostly. Now and then it is so long that others commit what they have taken later.
func hold(random *rand.Rand) {
	switch n := random.IntN(500); {
	case n == 0:
		time.Sleep(time.Duration(random.Int64N(int64(3 * time.Second))))
	case n < 20:
		time.Sleep(time.Duration(random.Int64N(int64(100 * time.Millisecond))))
	}
}

// prepare locks an aggregate, unless the messages are to have no key, and notes in the transaction what it publishes. Some of
// those without a key are delayed.
func (p *producer) prepare(ctx context.Context, tx pgx.Tx, name string, random *rand.Rand) (topic string, msgs []history.Message, err error) {
	msgs = make([]history.Message, 1+random.IntN(2*usualSize-1))
	topic = events
	if random.IntN(8) == 0 {
		topic = orders
	}
	var version int64
	key := ""
	if random.IntN(10) > 0 {
		aggregate := random.IntN(aggregates)
		key = fmt.Sprintf("aggregate-%d", aggregate)
		err = tx.QueryRow(ctx, "UPDATE aggregates SET version = version + $2 WHERE id = $1 RETURNING version - $2", aggregate, len(msgs)).Scan(&version)
	}
	for i := range msgs {
		msgs[i] = history.Message{ID: fmt.Sprintf("%s-%d", name, i), Key: key}
		switch {
		case key != "":
			msgs[i].Number = version + int64(i) + 1
		case random.IntN(4) == 0:
			msgs[i].Delay = random.Int64N(int64(2 * time.Second))
		}
	}
	if err != nil {
		return topic, msgs, err
	}
	return topic, msgs, note(ctx, tx, topic, msgs)
}

// note writes down that the transaction publishes messages.
func note(ctx context.Context, tx pgx.Tx, topic string, msgs []history.Message) error {
	ids, keys, numbers := make([]string, len(msgs)), make([]string, len(msgs)), make([]int64, len(msgs))
	for i, m := range msgs {
		ids[i], keys[i], numbers[i] = m.ID, m.Key, m.Number
	}
	_, err := tx.Exec(ctx, "INSERT INTO sent (id, key, number, topic) SELECT m.id, m.key, m.number, $4 FROM unnest($1::text[], $2::text[], $3::bigint[]) m (id, key, number)", ids, keys, numbers, topic)
	return err
}

// toPublish makes the messages themselves.
func toPublish(msgs []history.Message) []*message.Message {
	all := make([]*message.Message, len(msgs))
	for i, m := range msgs {
		all[i] = message.NewMessage(m.ID, history.Payload(m.ID))
		if m.Key != "" {
			outbox.SetKey(all[i], m.Key)
		}
		if m.Delay > 0 {
			delay.Message(all[i], delay.For(time.Duration(m.Delay)))
		}
	}
	return all
}
