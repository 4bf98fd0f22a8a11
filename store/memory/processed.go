package memory

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/watermill-outbox/outbox"
)

type processedID struct{ group, msgID string }

// Processed is the [outbox.ProcessedStore] of a [Store]. Its db arguments are a *Tx, or nil for a transaction of its
// own.
type Processed struct{ store *Store }

var _ interface {
	outbox.ProcessedStore
	outbox.Transactor
} = (*Processed)(nil)

// Processed returns the store's record of handled messages.
func (s *Store) Processed() *Processed { return &Processed{store: s} }

// RunInTx implements [outbox.Transactor].
func (p *Processed) RunInTx(ctx context.Context, fn func(ctx context.Context, tx any) error) error {
	return p.store.RunInTx(ctx, fn)
}

// IsProcessed implements [outbox.ProcessedStore].
func (p *Processed) IsProcessed(_ context.Context, db any, group, msgID string) (bool, error) {
	var tx *Tx
	if db != nil {
		var err error
		if tx, err = p.store.txOf(db); err != nil {
			return false, err
		}
	}
	p.store.db.mu.Lock()
	defer p.store.db.mu.Unlock()
	id := processedID{group, msgID}
	at, seen := p.store.db.processed[id]
	seen = seen && (tx == nil || !at.Before(tx.purged))
	return seen || (tx != nil && p.store.db.marking[id] == tx), nil
}

// MarkProcessed implements [outbox.ProcessedStore].
func (p *Processed) MarkProcessed(
	ctx context.Context, db any, group, msgID string, metadata json.RawMessage,
) (bool, error) {
	if group == "" || msgID == "" {
		return false, errors.New("memory: mark processed: the group and the message id must not be empty")
	}
	if metadata != nil && !json.Valid(metadata) {
		return false, errors.New("memory: mark processed: the metadata is not valid JSON")
	}
	if db == nil {
		isNew := false
		err := p.store.InTx(ctx, func(ctx context.Context, tx *Tx) (err error) {
			isNew, err = p.MarkProcessed(ctx, tx, group, msgID, metadata)
			return err
		})
		return isNew, err
	}
	tx, err := p.store.txOf(db)
	if err != nil {
		return false, err
	}
	id := processedID{group, msgID}
	for {
		isNew, wait, err := p.tryMark(tx, id)
		if wait == nil {
			return isNew, err
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return false, fmt.Errorf("memory: wait for the other delivery of %q: %w", msgID, ctx.Err())
		}
	}
}

// tryMark marks, or returns a channel that is closed when the transaction that has marked the message ends.
func (p *Processed) tryMark(tx *Tx, id processedID) (isNew bool, wait <-chan struct{}, err error) {
	p.store.db.mu.Lock()
	defer p.store.db.mu.Unlock()
	if tx.ended() {
		return false, nil, ErrTxDone
	}
	if at, seen := p.store.db.processed[id]; seen && !at.Before(tx.purged) {
		return false, nil, nil
	}
	switch other := p.store.db.marking[id]; other {
	case nil:
		p.store.db.marking[id] = tx
		tx.marked = append(tx.marked, id)
		return true, nil, nil
	case tx:
		return false, nil, nil
	default:
		return false, other.done, nil
	}
}

// PurgeProcessedBefore implements [outbox.ProcessedStore].
func (p *Processed) PurgeProcessedBefore(ctx context.Context, db any, t time.Time) (n int64, err error) {
	if db == nil {
		err := p.store.InTx(ctx, func(ctx context.Context, tx *Tx) (err error) {
			n, err = p.PurgeProcessedBefore(ctx, tx, t)
			return err
		})
		return n, err
	}
	tx, err := p.store.txOf(db)
	if err != nil {
		return 0, err
	}
	p.store.db.mu.Lock()
	defer p.store.db.mu.Unlock()
	if tx.ended() {
		return 0, ErrTxDone
	}
	for _, at := range p.store.db.processed {
		if at.Before(t) && !at.Before(tx.purged) {
			n++
		}
	}
	if t.After(tx.purged) {
		tx.purged = t
	}
	return n, nil
}

// purge deletes marks from before t. The caller holds mu.
func (db *database) purge(t time.Time) {
	if t.IsZero() {
		return
	}
	maps.DeleteFunc(db.processed, func(_ processedID, at time.Time) bool { return at.Before(t) })
}
