package main

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// committers is how many goroutines commit at once, at most.
const committers = 32

// onSchedule calls commit with 0 to n-1, each when it is due, and does not wait for who is late. It ends with the first error,
// or with the context.
func onSchedule(ctx context.Context, begin time.Time, every time.Duration, n int, commit func(i int) error) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var next atomic.Int64
	var all sync.WaitGroup
	for range committers {
		all.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n || !sleepUntil(ctx, begin.Add(time.Duration(i)*every)) {
					return
				}
				if err := commit(i); err != nil {
					stop(err)
					return
				}
			}
		})
	}
	all.Wait()
	return context.Cause(ctx)
}

// sleepUntil returns whether that time has come: not if the context ends first.
func sleepUntil(ctx context.Context, at time.Time) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(time.Until(at)):
		return ctx.Err() == nil
	}
}
