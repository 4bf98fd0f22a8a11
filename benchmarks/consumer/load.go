package consumer

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/ThreeDotsLabs/watermill/message"
)

// load delivers messages to a handler as a router would.
type load struct {
	handle  message.HandlerFunc
	context context.Context //nolint:containedctx // what messages of a router carry
	seed    uint64          // of the UUIDs
	next    atomic.Int64    // the delivery that comes next, from 0
}

func newLoad(ctx context.Context, handle message.HandlerFunc) (*load, error) {
	ofRouter, err := routerContext(ctx)
	if err != nil {
		return nil, err
	}
	return &load{handle: handle, context: ofRouter, seed: rand.Uint64()}, nil //nolint:gosec // it guards nothing
}

func (l *load) deliveries() int { return int(l.next.Load()) }

// run delivers until the time is over, and returns how long each delivery took, in microseconds. Every delivery that was
// begun has ended then.
func (l *load) run(ctx context.Context, clients int, d time.Duration) (*hdrhistogram.Histogram, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	all := newHistogram()
	var mu sync.Mutex // of all
	var running sync.WaitGroup
	until := time.Now().Add(d)
	for range clients {
		running.Go(func() { // until the time is over, or somebody's error has ended the context
			latencies, err := l.deliver(ctx, until)
			if err != nil {
				cancel(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			all.Merge(latencies)
		})
	}
	running.Wait()
	return all, context.Cause(ctx)
}

func newHistogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(1, time.Minute.Microseconds(), 3)
}

func (l *load) deliver(ctx context.Context, until time.Time) (*hdrhistogram.Histogram, error) {
	rng := rand.New(rand.NewPCG(l.seed, rand.Uint64())) //nolint:gosec // it guards nothing
	latencies := newHistogram()
	for now := time.Now(); now.Before(until) && ctx.Err() == nil; {
		if err := l.deliverOne(rng); err != nil {
			return nil, err
		}
		begun := now
		now = time.Now()
		if err := latencies.RecordValue(now.Sub(begun).Microseconds()); err != nil {
			return nil, fmt.Errorf("record how long a delivery took: %w", err)
		}
	}
	return latencies, nil
}

// deliverOne gives the message a context that can be cancelled, as subscribers do: pgx then watches it during statements.
func (l *load) deliverOne(rng *rand.Rand) error {
	n := messageOf(int(l.next.Add(1)-1), rng)
	msg := message.NewMessage(l.uuid(n), fmt.Appendf(nil, `{"order":"%010d","note":"%060d"}`, n, 0))
	ctx, cancel := context.WithCancel(l.context)
	defer cancel()
	msg.SetContext(ctx)
	if _, err := l.handle(msg); err != nil {
		return err
	}
	msg.Ack()
	return nil
}

// uuid is always the same for one message.
func (l *load) uuid(n int) string {
	rng := rand.NewPCG(l.seed, uint64(n)) //nolint:gosec // it guards nothing, and n is not negative
	a, b := rng.Uint64(), rng.Uint64()
	return fmt.Sprintf("%08x-%04x-4%03x-%04x-%012x", a>>32, a>>16&0xffff, a&0xfff, b>>48&0x3fff|0x8000, b&(1<<48-1))
}

const (
	redeliveredEach = 10  // one delivery of so many
	farthest        = 100 // the earlier message is up to so many times redeliveredEach before
)

// messageOf returns which message a delivery is of: of ten the last is an earlier one again, which may still be under way,
// and the others are new.
func messageOf(delivery int, rng *rand.Rand) int {
	if delivery%redeliveredEach != redeliveredEach-1 {
		return delivery
	}
	back := rng.IntN(min(delivery/redeliveredEach, farthest-1) + 1)
	return delivery - 1 - back*redeliveredEach // it ends with an 8, and so is no redelivery itself
}

// messagesIn returns of how many messages the first deliveries are.
func messagesIn(deliveries int) int { return deliveries - deliveries/redeliveredEach }
