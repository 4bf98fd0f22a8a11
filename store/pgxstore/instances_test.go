package pgxstore_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/watermill-outbox/outbox/internal/pgtest"
)

// Invariants, which world.check looks at:
//
//   - A slot that an instance gives to another takes no message along that is being published, so of each aggregate the
//     first landings are in order whoever they are by.
//   - No message is published by two, and none by nobody.
//
// Writers lock aggregates while one instance after the other joins, so slots move until each has its share. None is killed,
// but a broker that fails now and then leaves messages behind that are to be tried again.
func TestRelays_KeepOrder_WhenManyShareTheWork(t *testing.T) {
	together, numbers := 2*time.Second, []int{4, 8}
	if testing.Short() {
		together, numbers = 200*time.Millisecond, []int{4}
	}
	for _, instances := range numbers {
		t.Run(fmt.Sprintf("%d instances", instances), func(t *testing.T) {
			w := newWorld(t, scenario{server: pgtest.V15})
			ctx, stopWriting := context.WithCancel(t.Context())
			var writing sync.WaitGroup
			defer writing.Wait()
			defer stopWriting()
			for i := range writers {
				wr := &writer{w: w, number: i, random: rand.New(rand.NewPCG(w.seed, uint64(1+i)))}
				writing.Go(func() { wr.run(ctx) })
			}
			for range instances {
				w.startRelay(t, "pgx")
				w.awaitEach(t)
			}
			time.Sleep(together)
			w.awaitEach(t) // still
			stopWriting()
			writing.Wait()
			w.awaitAll(t)
			for _, r := range w.all {
				r.leave(t)
			}
			w.check(t)
		})
	}
}

// awaitEach waits until each relay has published something from now on.
func (w *world) awaitEach(t *testing.T) {
	t.Helper()
	w.broker.mu.Lock()
	seen := len(w.broker.landings)
	w.broker.mu.Unlock()
	watchdog := time.NewTimer(20 * time.Second)
	defer watchdog.Stop()
	for working := map[*relay]bool{}; len(working) < len(w.all); {
		select {
		case <-w.broker.landed:
		case <-watchdog.C:
			t.Fatalf("only %d of %d relays publish", len(working), len(w.all))
		}
		w.broker.mu.Lock()
		for _, l := range w.broker.landings[seen:] {
			working[l.by] = true
		}
		seen = len(w.broker.landings)
		w.broker.mu.Unlock()
	}
}
