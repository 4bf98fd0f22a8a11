package outbox

import (
	"context"
	"reflect"
	"sync"
)

type txKey struct{ store Store }

// ContextWithTx returns a context that carries tx for store: a [Publisher] over the same store writes messages with
// this context in tx. Two stores never take each other's transactions. The stores' own ContextWithTx methods do the
// same with a typed tx.
func ContextWithTx(ctx context.Context, store Store, tx any) context.Context {
	if !isComparable(store) {
		return ctx // NewPublisher refuses such a store and says why
	}
	return context.WithValue(ctx, txKey{store}, tx)
}

// TxFromContext returns the transaction that ctx carries for store.
func TxFromContext(ctx context.Context, store Store) (any, bool) {
	if !isComparable(store) {
		return nil, false
	}
	tx := ctx.Value(txKey{store})
	return tx, tx != nil
}

// txLocks serializes Publish calls on one transaction: message.Publisher must be safe for concurrent use, and a pgx.Tx is
// not. A lock exists while somebody holds it or waits for it, and each transaction has its own, since one may wait in the
// database for another.
type txLocks struct {
	mu    sync.Mutex
	locks map[any]*txLock
	spare []*txLock
}

type txLock struct {
	sync.Mutex
	users int
}

var publishing = txLocks{locks: map[any]*txLock{}}

// lock waits for tx. Call unlock with its result.
func (l *txLocks) lock(tx any) *txLock {
	l.mu.Lock()
	lock := l.locks[tx]
	if lock == nil {
		if n := len(l.spare); n > 0 {
			lock, l.spare = l.spare[n-1], l.spare[:n-1]
		} else {
			lock = &txLock{}
		}
		l.locks[tx] = lock
	}
	lock.users++
	l.mu.Unlock()
	lock.Lock()
	return lock
}

func (l *txLocks) unlock(tx any, lock *txLock) {
	lock.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if lock.users--; lock.users == 0 {
		delete(l.locks, tx)
		if len(l.spare) < 64 {
			l.spare = append(l.spare, lock)
		}
	}
}

// isComparable reports whether v can be a part of a context key without a panic.
func isComparable(v any) bool { return v != nil && reflect.ValueOf(v).Comparable() }

// isNil reports whether v is nil or an interface that holds a nil pointer, map, function and so on.
func isNil(v any) bool {
	if v == nil {
		return true
	}
	switch rv := reflect.ValueOf(v); rv.Kind() { //nolint:exhaustive // the other kinds cannot be nil
	case reflect.Pointer, reflect.Map, reflect.Func, reflect.Chan, reflect.Slice, reflect.Interface:
		return rv.IsNil()
	default:
		return false
	}
}
