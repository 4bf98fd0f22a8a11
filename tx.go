package outbox

import (
	"context"
	"reflect"
	"sync"
)

type txKey struct{ store Store }

// boundTx is a transaction and the lock that serializes Publish calls on it: message.Publisher must be safe for
// concurrent use, and a pgx.Tx is not.
type boundTx struct {
	mu sync.Mutex
	tx any
}

// ContextWithTx returns a context that carries tx for store: a [Publisher] over the same store writes messages with
// this context in tx. Two stores never take each other's transactions. The stores' own ContextWithTx methods do the
// same with a typed tx.
func ContextWithTx(ctx context.Context, store Store, tx any) context.Context {
	if !isComparable(store) {
		return ctx // NewPublisher refuses such a store and says why
	}
	if b := boundTxFrom(ctx, store); b != nil && isComparable(tx) && b.tx == tx {
		return ctx // the same transaction keeps its lock
	}
	return context.WithValue(ctx, txKey{store}, &boundTx{tx: tx})
}

// TxFromContext returns the transaction that ctx carries for store.
func TxFromContext(ctx context.Context, store Store) (any, bool) {
	if b := boundTxFrom(ctx, store); b != nil && b.tx != nil {
		return b.tx, true
	}
	return nil, false
}

func boundTxFrom(ctx context.Context, store Store) *boundTx {
	if !isComparable(store) {
		return nil
	}
	b, _ := ctx.Value(txKey{store}).(*boundTx)
	return b
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
