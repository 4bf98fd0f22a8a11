package memory

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/watermill-outbox/outbox"
)

// ErrTxDone is returned for a transaction that has been committed or rolled back.
var ErrTxDone = errors.New("memory: the transaction has ended")

// Tx is a transaction: what is saved and marked in it becomes visible at Commit, all at once. Ids are given out when
// messages are saved, as a database sequence does, so they do not become visible in their order.
type Tx struct {
	db       *database
	done     chan struct{} // closed at the end; guarded by db.mu
	saved    []*outbox.Message
	marked   []processedID
	purged   time.Time // marks before it go at the commit
	onCommit []func()
}

// Begin begins a transaction.
func (s *Store) Begin() *Tx { return s.begin() }

func (s *Store) begin() *Tx { return &Tx{db: s.db, done: make(chan struct{})} }

// OnCommit has f called within Commit, if the transaction gets there: for the business writes of a test. It must not
// call the store.
func (t *Tx) OnCommit(f func()) {
	t.db.mu.Lock()
	defer t.db.mu.Unlock()
	t.onCommit = append(t.onCommit, f)
}

// Commit makes the transaction's writes visible. It returns [ErrTxDone] if the transaction has ended.
func (t *Tx) Commit() error {
	t.db.mu.Lock()
	defer t.db.mu.Unlock()
	if t.ended() {
		return ErrTxDone
	}
	t.db.purge(t.purged)
	for _, id := range t.marked {
		t.db.processed[id] = t.db.now()
	}
	for _, f := range t.onCommit {
		f()
	}
	for _, row := range t.saved {
		t.db.commitRow(row)
	}
	t.end()
	if len(t.saved) > 0 {
		t.db.notify()
	}
	return nil
}

// Rollback discards the transaction's writes. It returns [ErrTxDone] if the transaction has ended.
func (t *Tx) Rollback() error {
	t.db.mu.Lock()
	defer t.db.mu.Unlock()
	if t.ended() {
		return ErrTxDone
	}
	t.end()
	return nil
}

// ended and end need db.mu.
func (t *Tx) ended() bool {
	select {
	case <-t.done:
		return true
	default:
		return false
	}
}

func (t *Tx) end() {
	for _, id := range t.marked {
		delete(t.db.marking, id)
	}
	close(t.done)
}

func (s *Store) txOf(tx any) (*Tx, error) {
	t, ok := tx.(*Tx)
	switch {
	case !ok:
		return nil, fmt.Errorf("memory: a %T: %w: it takes a *memory.Tx", tx, outbox.ErrInvalidTx)
	case t == nil:
		return nil, fmt.Errorf("memory: a nil *memory.Tx: %w", outbox.ErrInvalidTx)
	case t.db != s.db:
		return nil, fmt.Errorf("memory: a *memory.Tx of another store: %w", outbox.ErrInvalidTx)
	}
	return t, nil
}

// Publisher returns a publisher that writes in tx.
func (s *Store) Publisher(tx *Tx, opts ...outbox.PublisherOption) *outbox.Publisher {
	return outbox.PublisherWithTx(s, tx, opts...)
}

// ContextWithTx returns a context by which a Publisher over this store, and handlers, find tx.
func (s *Store) ContextWithTx(ctx context.Context, tx *Tx) context.Context {
	return outbox.ContextWithTx(ctx, s, tx)
}

// TxFromContext returns the transaction that ctx carries for this store.
func (s *Store) TxFromContext(ctx context.Context) (*Tx, bool) {
	tx, _ := outbox.TxFromContext(ctx, s)
	t, ok := tx.(*Tx)
	return t, ok
}

// InTx calls fn with a transaction, which the ctx of fn carries too: committed when fn returns nil, rolled back when it
// returns an error or panics.
func (s *Store) InTx(ctx context.Context, fn func(ctx context.Context, tx *Tx) error) error {
	tx := s.begin()
	defer tx.Rollback() //nolint:errcheck // after Commit it has nothing to do
	if err := fn(s.ContextWithTx(ctx, tx), tx); err != nil {
		return err
	}
	return tx.Commit()
}

// RunInTx implements [outbox.Transactor].
func (s *Store) RunInTx(ctx context.Context, fn func(ctx context.Context, tx any) error) error {
	return s.InTx(ctx, func(ctx context.Context, tx *Tx) error { return fn(ctx, tx) })
}
