package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"weak"

	"golang.org/x/sync/semaphore"
)

// writers is the queue of the engines that write through one *sql.DB. SQLite has one writer at a time and no order among
// those who wait: each looks again after a pause that grows to 100 ms, so that under load some give up who were there
// first. Here one has the turn at a time, and who has it is alone in asking SQLite, unless other processes do, or
// transactions that the user has begun himself.
//
//   - The turn begins before the transaction or statement and ends after it, whatever its outcome.
//   - The turn comes before the connection: who waits for the turn holds no connection of its own that the one who has the
//     turn could wait for.
//   - Transactions have the turn in the order in which they came. Of all that wait, only the first stands in line for the
//     turn itself; the others are behind the door. So a single statement, which keeps nobody waiting for long, waits for
//     two transactions at most: the lease must be renewed in time, however many handlers there are.
//   - Every wait ends. An open transaction may be waiting for who wants the turn: somebody has begun another inside of it.
//     So who finds a transaction open gives up after patience, if that is still open; those who came before it began go on
//     waiting. Nobody waits for longer than waitTimeout.
type writers struct {
	turn *semaphore.Weighted
	door *semaphore.Weighted
	// open is the transaction that has the turn, once it has begun.
	open atomic.Pointer[transaction]
}

// waitTimeout is how long a write waits for its turn, and a transaction for its beginning.
const waitTimeout = 30 * time.Second

// queues holds the queue of each *sql.DB: a weak.Pointer[sql.DB] → *writers. An entry goes with its *sql.DB.
var queues sync.Map

func writersOf(db *sql.DB) *writers {
	key := weak.Make(db)
	queue, known := queues.LoadOrStore(key, &writers{turn: semaphore.NewWeighted(1), door: semaphore.NewWeighted(1)})
	if !known {
		runtime.AddCleanup(db, func(key weak.Pointer[sql.DB]) { queues.Delete(key) }, key)
	}
	return queue.(*writers) //nolint:forcetypeassert // the map holds nothing else
}

// enter waits for the turn. Who gets it calls leave.
func (w *writers) enter(ctx context.Context, patience time.Duration, isTransaction bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if w.turn.TryAcquire(1) { // nobody is in line
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, waitTimeout)
	defer cancel()
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	if found := w.open.Load(); found != nil {
		timer := time.AfterFunc(patience, func() {
			if w.open.Load() == found {
				giveUp(fmt.Errorf("database is locked: %w", errInTheWay))
			}
		})
		defer timer.Stop()
	}
	if isTransaction {
		if w.door.Acquire(ctx, 1) != nil {
			return whyNoTurn(ctx)
		}
		defer w.door.Release(1)
	}
	if w.turn.Acquire(ctx, 1) != nil {
		return whyNoTurn(ctx)
	}
	return nil
}

func (w *writers) leave() { w.turn.Release(1) }

// errInTheWay is what to do about a write lock that does not come free.
var errInTheWay = errors.New("another transaction, of this process or not, is in the way: where one is open, in a handler " +
	"and in InTx, write in it (store.TxFromContext) and begin no other, and keep transactions short")

func whyNoTurn(ctx context.Context) error {
	err := context.Cause(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("database is locked: %w while others wrote: %w", err, errInTheWay)
	}
	return err
}
