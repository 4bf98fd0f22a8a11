package crash_test

import (
	"context"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
)

// Processes that are broken in one way each, as others have shipped them.
const (
	publishesOutside = "publishes outside of the transaction"
	marksFirst       = "marks before it publishes"
	requeuesFailed   = "puts a message that has failed behind the others of its key"
	recordsFirst     = "records a message as handled before the handler's transaction"
)

func TestPromises_AreMissed_WhereAProcessIsBroken(t *testing.T) {
	for _, j := range []job{
		{Role: roleProduce, Broken: publishesOutside, At: target{"before commit", 2}}, // after that of Publish
		{Role: roleRelay, Broken: marksFirst, At: target{"before Publish", 1}},
		{Role: roleRelay, Broken: requeuesFailed, At: target{"before Release", 1}},
		{Role: roleConsume, Broken: recordsFirst, At: target{"after the handler", 1}},
	} {
		t.Run(j.Broken, func(t *testing.T) {
			w, missed := newWorld(t, kindPgx), map[string]string{
				publishesOutside: "and was not committed", marksFirst: "was published 0 times", requeuesFailed: "is published behind",
				recordsFirst: "the effects are",
			}
			end, err := w.crash(t.Context(), j)
			require.True(t, end.crashed)
			require.ErrorContains(t, err, missed[j.Broken])
		})
	}
}

func (s pointedStore) afterClaim(ctx context.Context, msgs []outbox.Message) error {
	var outcomes []outbox.Outcome
	for _, m := range msgs {
		s.claimed.Store(m.ID, m)
		if s.broken == marksFirst {
			outcomes = append(outcomes, outbox.Outcome{ID: m.ID, Status: outbox.StatusProcessed})
		}
	}
	return s.outboxStore.Settle(ctx, outcomes...)
}

func (s pointedStore) beforeSettle(ctx context.Context, outcomes []outbox.Outcome) error {
	for i, o := range outcomes {
		m, _ := s.claimed.Load(o.ID)
		if s.broken == requeuesFailed && o.Status == outbox.StatusPending {
			outcomes[i] = outbox.Outcome{ID: o.ID, Status: outbox.StatusProcessed}
			if err := s.Save(ctx, nil, m.(outbox.Message)); err != nil {
				return err
			}
		}
	}
	return nil
}

// recordFirst is a middleware in the place of the Deduplicator's.
func (c *consumer) recordFirst(next message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) ([]*message.Message, error) {
		isNew, err := c.db.processed.MarkProcessed(msg.Context(), nil, group+"/"+handlerName, msg.UUID, nil)
		if err != nil || !isNew {
			return nil, err
		}
		return nil, c.db.store.RunInTx(msg.Context(), func(ctx context.Context, tx any) error {
			msg.SetContext(ctx)
			produced, err := next(msg)
			if err != nil {
				return err
			}
			return outbox.PublisherWithTx(c.db.store, tx).Publish("outputs", produced...)
		})
	}
}
