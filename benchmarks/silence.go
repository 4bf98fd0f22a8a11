package main

import (
	"context"
	"errors"
	"time"

	"github.com/watermill-outbox/outbox/benchmarks/peer"
	"github.com/watermill-outbox/outbox/benchmarks/result"
)

// silence is a scenario in which single messages come after nothing has for a while.
type silence struct {
	lasts time.Duration // at least: up to a second more is drawn, so that no relay that polls is met at its moment
	times int
}

func (s silence) run(ctx context.Context, b *bench, p peer.Peer, o peer.Outbox, run *result.Run) (err error) {
	if err := b.clean(ctx, o); err != nil {
		return err
	}
	relay, err := b.startRelay(ctx, p, o, "kafka")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, relay.stop(ctx)) }()
	var committed []time.Time
	for n := range s.times + 1 { // the first makes connections
		if err := o.Commit(ctx, usual.Message(n)); err != nil {
			return err
		}
		committed = append(committed, time.Now())
		if _, err := b.await(ctx, b.topic.Count, []*relayProcess{relay}, n+1); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(s.lasts + time.Duration(b.rng.Int64N(int64(time.Second)))):
		}
	}
	run.Metrics = metrics{}
	return writtenAfter(ctx, b, committed, 1, run)
}
