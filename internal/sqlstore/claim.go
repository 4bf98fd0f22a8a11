package sqlstore

import (
	"context"
	"errors"
	"time"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/internal/claim"
)

const (
	// minRead is the fewest rows a read asks for: the statement costs more than they.
	minRead = 64
	// maxForeign bounds by how much more a read asks for where other instances hold most of the slots.
	maxForeign = 8
	// maxReads bounds the reads of one Claim that has found something to claim.
	maxReads = 4
	// dueInterval is how often delayed messages are looked for by who claims.
	dueInterval = 25 * time.Millisecond
)

// DefaultMinPatience is how long a Claim waits for a database that does not answer, or twice the lease time if that is
// longer: until then its leases are renewed, so that nobody else can do the work.
const DefaultMinPatience = 10 * time.Second

func (e *Engine) patience() time.Duration { return max(2*e.ttl, e.minPatience) }

// Claim implements outbox.LeasedStore.
func (e *Engine) Claim(ctx context.Context, limit, maxBytes int) ([]outbox.Message, error) {
	defer e.tellAll()
	e.claimMu.Lock()
	defer e.claimMu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, e.patience())
	defer cancel()
	if e.released && e.dialect.Slots > 1 {
		// By another name: a statement that was to give slots up may have been cut off, and be run late.
		e.owner, e.owning, e.appeared = instanceName(), false, false
	}
	e.released = false
	observer, eventCtx := outbox.ObserverFromContext(ctx), context.WithoutCancel(ctx)
	e.mu.Lock()
	e.tell = func(event outbox.Event) { observer.Observe(eventCtx, event) }
	if time.Since(e.lastClaim) >= e.ttl {
		e.present.Store(false) // it may have left
	}
	e.lastClaim = time.Now()
	e.mu.Unlock()
	defer e.calling()()
	if !e.checked {
		if err := e.CheckSchema(ctx); err != nil {
			return nil, err
		}
		e.checked = true
	}
	if err := e.lead(ctx); err != nil {
		return nil, err
	}
	if limit <= 0 {
		return nil, nil
	}
	for reads := 0; ctx.Err() == nil; reads++ { // until there is something, or nothing left to read
		e.mu.Lock()
		ready, sated := e.queue.Ready(e.tick()), e.queue.Sated()
		e.mu.Unlock()
		if ready >= limit || (ready > 0 && (sated || reads >= maxReads)) {
			break
		}
		more, err := e.fill(ctx, limit-ready, maxBytes)
		if err != nil {
			return nil, err
		}
		if !more {
			break
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	claimed := e.queue.Claim(e.tick(), limit, maxBytes)
	msgs := make([]outbox.Message, len(claimed))
	for i, m := range claimed {
		msgs[i] = *m
	}
	return msgs, nil
}

// fill reads what may be claimed next, about n messages of it. more is false when there is nothing left to read. The
// caller holds claimMu.
func (e *Engine) fill(ctx context.Context, n, maxBytes int) (more bool, err error) {
	e.mu.Lock()
	wanted := e.queue.Wanted(e.tick(), n)
	if from, again := e.queue.Reread(); again {
		e.reader.Back(from - 1)
	}
	refillFrom, refill := e.queue.Refill()
	full := (len(wanted) > 0 && e.queue.Sated()) || e.queue.Full()
	held := max(len(e.leases), 1)
	maxBytes = min(maxBytes, max(e.queue.Room(), 1)) // what does not fit would be read again
	e.mu.Unlock()

	n = max(n, minRead) * min(max(e.dialect.Slots, 1)/held, maxForeign) // the rows of others are read, too
	n = e.rowsFor(n, maxBytes)
	if len(wanted) > 0 {
		if err := e.load(ctx, wanted[:e.rowsFor(len(wanted), maxBytes)], maxBytes); err != nil {
			return false, e.fail("read messages by id", err)
		}
		more = true
	}
	if refill {
		if err := e.refill(ctx, refillFrom); err != nil {
			return false, e.fail("read on behind a long key", err)
		}
		more = true
	}
	if !full && !time.Now().Before(e.nextDue) {
		due, err := e.readDue(ctx, n, maxBytes)
		if err != nil {
			return false, e.fail("read delayed messages", err)
		}
		more = more || due
	}
	if more {
		e.looked = time.Time{} // ids say nothing about what was read by them if the server is another
	}
	// Last, since it brings what has come late: nothing that was read before it may go without that.
	read, err := e.readOn(ctx, n, maxBytes, !full)
	if err != nil {
		return false, e.fail("read messages", err)
	}
	return more || read, nil
}

func messageID(m *outbox.Message) int64 {
	id, err := claim.RowID(m.ID)
	if err != nil {
		panic(err) // the engine made the id
	}
	return id
}

// FetchPending implements outbox.Store.
func (e *Engine) FetchPending(ctx context.Context, limit int) ([]outbox.Message, error) {
	msgs, err := e.Claim(ctx, limit, claim.ByHandBytes)
	if errors.Is(err, outbox.ErrNoLease) {
		return nil, nil
	}
	return msgs, err
}

// PauseTopics implements outbox.TopicPauser.
func (e *Engine) PauseTopics(topics ...string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.queue.Pause(topics)
}
