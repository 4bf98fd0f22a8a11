package history_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/store/pgxstore"
	"github.com/watermill-outbox/outbox/test/history"
)

// seed is drawn, or set by OUTBOX_HISTORY_SEED.
func seed(t *testing.T) uint64 {
	t.Helper()
	drawn := rand.Uint64()
	if text := os.Getenv("OUTBOX_HISTORY_SEED"); text != "" {
		var err error
		drawn, err = strconv.ParseUint(text, 10, 64)
		require.NoError(t, err)
	}
	t.Logf("OUTBOX_HISTORY_SEED=%d", drawn)
	return drawn
}

func TestSystem_KeepsItsPromises_WhileRelaysAndHandlersFail(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes a while")
	}
	t.Parallel()
	seed := seed(t)
	s := newSystem(t, variant{})
	s.patience = longPatience
	report := s.run(t, seed)
	require.True(t, report.OK(), report)
	require.NotZero(t, min(report.Messages, report.RolledBack, report.Effects))
	require.NotZero(t, report.Duplicates, "nothing was disturbed")
	t.Log(report)
}

// rounds is how often a broken system is run until it is caught: what it does depends on the machine, too.
const rounds = 3

// What people write by hand, and what could go wrong in this project. Each is caught.
func TestCheck_CatchesBrokenSystems(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("it takes a minute")
	}
	for name, c := range map[string]struct {
		variant

		want history.Violation
	}{
		"a relay that marks before it publishes": {variant{store: marksFirst}, history.Lost},
		"a relay that skips late commits":        {variant{store: skipsLateCommits}, history.Lost},
		"a relay that ignores its lease":         {variant{store: ignoresItsLease}, history.WithoutLease},
		"hashed claims without order":            {variant{store: forgetsKeys}, history.OutOfOrder},
		"a deduplicator that marks first":        {variant{deliver: marksAndHandles}, history.EffectMissing},
		"no deduplicator":                        {variant{deliver: handlesAlways}, history.EffectTwice},
		"an effect and a mark that commit apart": {variant{deliver: handlesAndMarks}, history.EffectTwice},
		"a publish after the commit":             {variant{transact: publishAfterwards}, history.Lost},
		"a publish before the commit":            {variant{transact: publishBefore}, history.Phantom},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var report *history.Report
			for range rounds {
				seed := seed(t)
				if report = newSystem(t, c.variant).run(t, seed); report.Counts[c.want] > 0 {
					t.Log(report)
					return
				}
			}
			t.Fatalf("not caught: %v", report)
		})
	}
}

// firstMarker tells the store that messages are published as soon as it has them.
type firstMarker struct{ outbox.LeasedStore }

func marksFirst(_ *system, of *pgxstore.Store) outbox.Store { return firstMarker{of} }

func (m firstMarker) Claim(ctx context.Context, limit, maxBytes int) ([]outbox.Message, error) {
	msgs, err := m.LeasedStore.Claim(ctx, limit, maxBytes)
	if err != nil {
		return nil, err
	}
	outcomes := make([]outbox.Outcome, len(msgs))
	for i, msg := range msgs {
		outcomes[i] = outbox.Outcome{ID: msg.ID, Status: outbox.StatusProcessed}
	}
	return msgs, m.LeasedStore.Settle(ctx, outcomes...)
}

func (firstMarker) Settle(context.Context, ...outbox.Outcome) error { return nil }
func (firstMarker) Owned(string) bool                               { return true }

// cursorReader reads on from the last id that it has seen, as relays of twenty lines do.
type cursorReader struct {
	outbox.Store

	pool   *pgxpool.Pool
	cursor *int64
}

func skipsLateCommits(s *system, of *pgxstore.Store) outbox.Store {
	return cursorReader{of, s.pool, new(int64)}
}

func (c cursorReader) FetchPending(ctx context.Context, limit int) ([]outbox.Message, error) {
	rows, err := c.pool.Query(ctx, "SELECT id, uuid, topic, key, payload FROM outbox_messages WHERE id > $1 ORDER BY id LIMIT $2", *c.cursor, limit)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (m outbox.Message, err error) {
		err = row.Scan(c.cursor, &m.UUID, &m.Topic, &m.Key, &m.Payload)
		m.ID = strconv.FormatInt(*c.cursor, 10)
		return m, err
	})
}

func (c cursorReader) MarkProcessed(ctx context.Context, ids ...string) error {
	_, err := c.pool.Exec(ctx, "DELETE FROM outbox_messages WHERE id = ANY ($1::text[]::bigint[])", ids)
	return err
}

func (cursorReader) MarkFailed(context.Context, string, error) error { return nil }

// squatter thinks that what it has claimed is its own for ever.
type squatter struct{ outbox.LeasedStore }

func ignoresItsLease(_ *system, of *pgxstore.Store) outbox.Store { return squatter{of} }

func (squatter) Owned(string) bool { return true }

// keyless hands out what it has claimed in order to workers that keep none.
type keyless struct{ outbox.LeasedStore }

func forgetsKeys(_ *system, of *pgxstore.Store) outbox.Store { return keyless{of} }

func (k keyless) Claim(ctx context.Context, limit, maxBytes int) ([]outbox.Message, error) {
	msgs, err := k.LeasedStore.Claim(ctx, limit, maxBytes)
	for i := range msgs {
		msgs[i].Key = ""
	}
	return msgs, err
}

// crashes tells whether the process is killed at some step.
func (c *consumer) crashes() bool { return c.random.IntN(20) == 0 }

func (c *consumer) mark(id string) (isNew bool, err error) {
	return c.store.Processed().MarkProcessed(context.Background(), nil, group, id, nil)
}

func (c *consumer) handleInTx(id string) error {
	c.attempts++
	name := fmt.Sprintf("%s-%d", c.name, c.attempts)
	err := c.store.InTx(context.Background(), func(ctx context.Context, tx pgx.Tx) error { return c.effect(ctx, tx, id, name) })
	c.ended(name, true, err)
	return err
}

func marksAndHandles(c *consumer, msg *message.Message) error {
	isNew, err := c.mark(msg.UUID)
	if err != nil || !isNew {
		return err
	}
	if c.crashes() {
		return errCrash
	}
	return c.handleInTx(msg.UUID)
}

func handlesAndMarks(c *consumer, msg *message.Message) error {
	done, err := c.store.Processed().IsProcessed(context.Background(), nil, group, msg.UUID)
	if err != nil || done {
		return err
	}
	if err := c.handleInTx(msg.UUID); err != nil {
		return err
	}
	if c.crashes() {
		return errCrash
	}
	_, err = c.mark(msg.UUID)
	return err
}

func handlesAlways(c *consumer, msg *message.Message) error { return c.handleInTx(msg.UUID) }

// publishAfterwards publishes when the transaction has committed, if the process still lives.
func publishAfterwards(p *producer, aggregate int) error {
	ctx := context.Background()
	tx, msgs, err := p.change(ctx, aggregate)
	if err != nil {
		return err
	}
	if err := tx.Commit(ctx); err != nil {
		return err
	}
	if p.random.IntN(20) == 0 {
		return nil
	}
	return p.publishAlone(msgs)
}

// publishBefore publishes on its own, and then commits, or not.
func publishBefore(p *producer, aggregate int) error {
	ctx := context.Background()
	tx, msgs, err := p.change(ctx, aggregate)
	if err != nil {
		return err
	}
	if err := p.publishAlone(msgs); err != nil {
		return errors.Join(err, tx.Rollback(ctx))
	}
	if p.random.IntN(10) == 0 {
		err := tx.Rollback(ctx)
		p.recorder.Add(history.Event{Kind: history.RolledBack, Tx: p.tx()})
		return err
	}
	time.Sleep(time.Millisecond)
	return tx.Commit(ctx)
}

func (p *producer) publishAlone(msgs []history.Message) error {
	publisher, err := outbox.NewPublisher(p.store, outbox.WithOwnTx())
	if err != nil {
		return err
	}
	p.recorder.Add(history.Event{Kind: history.Publishing, Tx: p.tx(), Messages: msgs})
	return publisher.Publish(inputs, watermillMessages(msgs)...)
}
