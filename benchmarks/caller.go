package main

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/watermill-outbox/outbox/benchmarks/peer"
	"github.com/watermill-outbox/outbox/benchmarks/result"
)

// caller is a scenario in which clients commit transactions with one message one after another, and nobody relays.
type caller struct {
	clients int
	lasts   time.Duration
	shape   peer.Shape
}

func (c caller) run(ctx context.Context, b *bench, _ peer.Peer, o peer.Outbox, run *result.Run) error {
	if err := b.clean(ctx, o); err != nil {
		return err
	}
	if _, err := c.load(ctx, o, settling/2); err != nil { // connections are made, statements prepared
		return err
	}
	before, err := b.walPosition(ctx)
	if err != nil {
		return err
	}
	begin := time.Now()
	histogram, err := c.load(ctx, o, c.lasts)
	if err != nil {
		return err
	}
	took := time.Since(begin)
	after, err := b.walPosition(ctx)
	if err != nil {
		return err
	}
	n := float64(histogram.TotalCount())
	run.Metrics = metrics{"tx_per_s": n / took.Seconds(), "wal_bytes": (after - before) / n}
	return tell(histogram, run)
}

func (b *bench) walPosition(ctx context.Context) (bytes float64, err error) {
	err = b.env.Pool.QueryRow(ctx, "SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn").Scan(&bytes)
	return bytes, err
}

func (c caller) load(ctx context.Context, o peer.Outbox, lasts time.Duration) (*hdrhistogram.Histogram, error) {
	var all sync.WaitGroup
	var failed atomic.Pointer[error]
	histograms := make([]*hdrhistogram.Histogram, c.clients)
	until := time.Now().Add(lasts)
	for client := range c.clients {
		histogram := newHistogram()
		histograms[client] = histogram
		all.Go(func() {
			for n := client; failed.Load() == nil; n += c.clients {
				msg := c.shape.Message(n)
				begin := time.Now()
				if begin.After(until) {
					return
				}
				if err := o.Commit(ctx, msg); err != nil {
					failed.Store(&err)
					return
				}
				record(histogram, time.Since(begin))
			}
		})
	}
	all.Wait()
	if err := failed.Load(); err != nil {
		return nil, *err
	}
	for _, h := range histograms[1:] {
		histograms[0].Merge(h)
	}
	return histograms[0], nil
}
