package storetest

import (
	"context"
	"errors"
	"reflect"

	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
)

func transactorPromises() []promise {
	return []promise{
		{name: "CommitsWhenTheFunctionReturnsNil", check: runInTxCommits},
		{name: "RollsBackWhenTheFunctionReturnsAnError", check: runInTxRollsBackOnAnError},
		{name: "RollsBackWhenTheFunctionPanics", check: runInTxRollsBackOnAPanic},
		{name: "PutsTheTransactionIntoTheContext", check: runInTxCarriesTheTransaction},
		{name: "DoesNotDependOnTheCancellationOfItsContext", check: runInTxSurvivesCancellation},
		{name: "BeginsATransactionOfItsOwn_WithinAnother", check: runInTxBeginsItsOwn},
		{name: "IsSafeForConcurrentUse", check: runInTxIsSafeForConcurrentUse},
	}
}

// eachTransactor runs check for a store and for its ProcessedStore.
func eachTransactor(e *env, check func(s outbox.Store, t outbox.Transactor, name string)) {
	e.Helper()
	e.needs("Features.Transactor", e.features.Transactor)
	s := e.open()
	t, ok := s.(outbox.Transactor)
	require.True(e, ok, "Features.Transactor is on, but a %T is no outbox.Transactor", s)
	check(s, t, "of the Store")
	if e.h.Processed != nil {
		s = e.open()
		t, ok = e.h.Processed(s).(outbox.Transactor)
		require.True(e, ok, "Features.Transactor is on, but a %T is no outbox.Transactor", e.h.Processed(s))
		check(s, t, "of the ProcessedStore")
	}
}

// saveAndWrite does in a transaction what users do.
func (e *env) saveAndWrite(ctx context.Context, s outbox.Store, tx any, value string) error {
	return errors.Join(s.Save(ctx, tx, unkeyed(value)), e.h.Write(ctx, tx, value))
}

// requireOutcome checks that messages and business writes are those that were committed.
func (e *env) requireOutcome(s outbox.Store, committed []string, why string, args ...any) {
	e.Helper()
	require.ElementsMatch(e, committed, e.written(), append([]any{"business writes: " + why}, args...)...)
	var own []string
	for _, m := range e.arrivals(s) {
		own = append(own, m.UUID)
		e.done(s, m)
	}
	require.ElementsMatch(e, committed, own, append([]any{"messages: " + why}, args...)...)
	require.NoError(e, e.handBack(s))
}

// handBack gives up the leases of s, if there are any, for another instance.
func (e *env) handBack(s outbox.Store) error {
	if l, ok := s.(outbox.LeasedStore); ok {
		return l.Release(e.ctx)
	}
	return nil
}

func runInTxCommits(e *env) {
	var names []string
	eachTransactor(e, func(s outbox.Store, t outbox.Transactor, name string) {
		err := t.RunInTx(e.ctx, func(ctx context.Context, tx any) error { return e.saveAndWrite(ctx, s, tx, name) })
		require.NoError(e, err, "RunInTx %s", name)
		names = append(names, name)
		require.ElementsMatch(e, names, e.written(), "business writes after RunInTx %s", name)
		e.done(s, e.await(s, name)...)
		require.NoError(e, e.handBack(s))
	})
}

func runInTxRollsBackOnAnError(e *env) {
	eachTransactor(e, func(s outbox.Store, t outbox.Transactor, name string) {
		asked := errors.New("please roll back")
		err := t.RunInTx(e.ctx, func(ctx context.Context, tx any) error {
			require.NoError(e, e.saveAndWrite(ctx, s, tx, name))
			return asked
		})
		require.ErrorIs(e, err, asked, "RunInTx %s must return the error of its function", name)
		e.requireOutcome(s, nil, "RunInTx %s must roll back when its function returns an error", name)
	})
}

func runInTxRollsBackOnAPanic(e *env) {
	eachTransactor(e, func(s outbox.Store, t outbox.Transactor, name string) {
		require.PanicsWithValue(e, "the panic of "+name, func() {
			_ = t.RunInTx(e.ctx, func(ctx context.Context, tx any) error {
				if err := e.saveAndWrite(ctx, s, tx, name); err != nil {
					return err
				}
				panic("the panic of " + name)
			})
		}, "RunInTx %s must pass the panic of its function on", name)
		e.requireOutcome(s, nil, "RunInTx %s must roll back when its function panics", name)
	})
}

// requireSameTx compares without a look into the transactions, which others may be using.
func requireSameTx(e *env, tx, carried any, name string) {
	e.Helper()
	require.True(e, reflect.TypeOf(tx) == reflect.TypeOf(carried) && (!reflect.TypeOf(tx).Comparable() || tx == carried),
		"in RunInTx %s, the context must carry the transaction that the function was given", name)
}

func runInTxCarriesTheTransaction(e *env) {
	eachTransactor(e, func(s outbox.Store, t outbox.Transactor, name string) {
		type key struct{}
		other := e.open()
		ctx := context.WithValue(e.ctx, key{}, "value")
		err := t.RunInTx(ctx, func(ctx context.Context, tx any) error {
			carried, ok := outbox.TxFromContext(ctx, s)
			require.True(e, ok, "in RunInTx %s, outbox.TxFromContext(ctx, store) must find the transaction", name)
			requireSameTx(e, tx, carried, name)
			require.Equal(e, "value", ctx.Value(key{}), "in RunInTx %s, a value of the context that it was given", name)
			_, ok = outbox.TxFromContext(ctx, other)
			require.False(e, ok, "in RunInTx %s, the context carries a transaction for another store", name)
			return nil
		})
		require.NoError(e, err, "RunInTx %s", name)
		_, ok := outbox.TxFromContext(ctx, s)
		require.False(e, ok, "RunInTx %s changed the context of its caller", name)
	})
}

// A router that is closed cancels the contexts of messages in flight at once; what they have done must still commit.
func runInTxSurvivesCancellation(e *env) {
	var committed []string
	eachTransactor(e, func(s outbox.Store, t outbox.Transactor, name string) {
		ctx, cancel := context.WithCancel(e.ctx)
		err := t.RunInTx(ctx, func(ctx context.Context, tx any) error {
			cancel()
			return e.saveAndWrite(context.WithoutCancel(ctx), s, tx, "cancelled within, "+name)
		})
		require.NoError(e, err, "RunInTx %s must commit when its function returns nil, though its context was cancelled "+
			"meanwhile", name)
		committed = append(committed, "cancelled within, "+name)

		err = t.RunInTx(ctx, func(ctx context.Context, tx any) error {
			return e.saveAndWrite(context.WithoutCancel(ctx), s, tx, "cancelled before, "+name)
		})
		require.NoError(e, err, "RunInTx %s must begin and commit though its context was cancelled before", name)
		committed = append(committed, "cancelled before, "+name)

		asked := errors.New("please roll back")
		err = t.RunInTx(ctx, func(ctx context.Context, tx any) error {
			return errors.Join(e.saveAndWrite(context.WithoutCancel(ctx), s, tx, "rolled back, "+name), asked)
		})
		require.ErrorIs(e, err, asked, "RunInTx %s", name)
		require.ElementsMatch(e, committed, e.written(), "business writes after RunInTx %s with a cancelled context", name)
		e.done(s, e.await(s, "cancelled within, "+name, "cancelled before, "+name)...)
		require.NoError(e, e.handBack(s))
	})
}

func runInTxBeginsItsOwn(e *env) {
	eachTransactor(e, func(s outbox.Store, t outbox.Transactor, name string) {
		outer := e.begin(s)
		if e.features.OneWriter { // two at once would wait for each other; one that has ended must not be used either
			e.rollback(outer)
		}
		ctx := outbox.ContextWithTx(e.ctx, s, outer.Handle())
		err := t.RunInTx(ctx, func(ctx context.Context, tx any) error {
			carried, _ := outbox.TxFromContext(ctx, s)
			requireSameTx(e, tx, carried, name)
			return e.saveAndWrite(ctx, s, tx, name)
		})
		require.NoError(e, err, "RunInTx %s with a context that carries a transaction already", name)
		_ = outer.Rollback()
		require.Contains(e, e.written(), name, "RunInTx %s must commit a transaction of its own, whatever becomes of the "+
			"one "+
			"that its context carries", name)
		e.done(s, e.await(s, name)...)
		require.NoError(e, e.handBack(s))
	})
}

func runInTxIsSafeForConcurrentUse(e *env) {
	eachTransactor(e, func(s outbox.Store, t outbox.Transactor, name string) {
		want := numbered(name+" ", 6)
		e.together(len(want), func(i int) error {
			return t.RunInTx(e.ctx, func(ctx context.Context, tx any) error {
				return e.saveAndWrite(ctx, s, tx, want[i])
			})
		})
		e.done(s, e.await(s, want...)...)
		require.NoError(e, e.handBack(s))
	})
}
