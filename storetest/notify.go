package storetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/watermill-outbox/outbox"
)

func notifyPromises() []promise {
	return []promise{
		{name: "WakesForCommitsOfAnotherInstance", check: func(e *env) { notifyWakes(e, e.open()) }},
		{name: "WakesForItsOwnCommits", check: func(e *env) { notifyWakes(e, nil) }},
		{name: "EndsWithItsContext", check: notifyEndsWithItsContext},
	}
}

func closePromises() []promise {
	return []promise{
		{name: "GivesUpItsLeases", check: closeGivesUpItsLeases},
		{name: "LeavesOtherInstancesAlone", check: closeLeavesOthersAlone},
		{name: "MayBeRepeated", check: closeMayBeRepeated},
		{name: "MayMeetAClaim", check: closeMayMeetAClaim, alone: true},
		{name: "EndsItsGoroutines", check: closeEndsItsGoroutines, alone: true},
	}
}

func (e *env) openNotifier() (outbox.Store, outbox.Notifier) {
	e.Helper()
	e.needs("Features.Notifier", e.features.Notifier)
	s := e.open()
	n, ok := s.(outbox.Notifier)
	require.True(e, ok, "Features.Notifier is on, but a %T is no outbox.Notifier", s)
	return s, n
}

// notifyWakes commits messages by writer, or by the store itself if that is nil, until Notify has called wake twice:
// signals may be sparse, and Notify takes its time to begin.
func notifyWakes(e *env, writer outbox.Store) {
	s, n := e.openNotifier()
	if writer == nil {
		writer = s
	}
	ctx, cancel := context.WithCancel(e.ctx)
	woken, ended := make(chan struct{}, 1), make(chan error, 1)
	go func() { // ends with ctx
		ended <- n.Notify(ctx, func() {
			select {
			case woken <- struct{}{}:
			default:
			}
		})
	}()
	if e.features.Deaf {
		e.deaf(ended)
		cancel()
		return
	}
	saved, wakes := 0, 0
	e.poll("Notify calls wake when messages are committed", func() bool {
		tx := e.begin(writer)
		e.saveIn(writer, tx, unkeyed(fmt.Sprint("m", saved+1)))
		saved++
		e.commit(tx)
		select {
		case <-woken:
			wakes++
		case err := <-ended:
			require.Fail(e, "Notify must run until its context ends", "it returned %v", err)
		case <-time.After(200 * time.Millisecond): // a signal may be left out if the last one is recent
		}
		return wakes == 2
	})
	e.await(s, numbered("m", saved)...)
	cancel()
	e.awaitEnd(ended)
}

// deaf waits for the error of a Notify that hears nothing.
func (e *env) deaf(ended <-chan error) {
	e.Helper()
	select {
	case err := <-ended:
		require.Error(e, err, "Notify, where nothing gets through, must not wait in vain")
	case <-time.After(patience):
		require.Fail(e, "Notify must return an error where nothing gets through")
	}
}

func (e *env) awaitEnd(ended <-chan error) {
	e.Helper()
	select {
	case err := <-ended: // which may be any
		e.Logf("Notify returned %v", err)
	case <-time.After(patience):
		require.Fail(e, "Notify must return when its context has ended")
	}
}

func notifyEndsWithItsContext(e *env) {
	_, n := e.openNotifier()
	ctx, cancel := context.WithCancel(e.ctx)
	ended := make(chan error, 3)
	for range 2 { // more than one at a time
		go func() { ended <- n.Notify(ctx, func() {}) }()
	}
	cancel()
	e.awaitEnd(ended)
	e.awaitEnd(ended)
	go func() { ended <- n.Notify(ctx, func() {}) }() // with a context that has ended before
	e.awaitEnd(ended)
}

func (e *env) openCloser() (outbox.Store, io.Closer) {
	e.Helper()
	s := e.open()
	c, ok := s.(io.Closer)
	e.needs("Harness.Open to return an io.Closer", ok)
	return s, c
}

func closeGivesUpItsLeases(e *env) {
	e.needs("Features.Slots", e.features.Slots > 0)
	s, c := e.openCloser()
	e.saveNumbered(s, "", "m", 3)
	claimed := e.await(s, numbered("m", 3)...)
	e.done(s, claimed[0])
	require.NoError(e, c.Close(), "Close")
	l, ok := s.(outbox.LeasedStore)
	require.True(e, ok)
	require.False(e, l.Owned(claimed[1].ID), "Owned, of a store that was closed")
	_, err := l.Claim(e.ctx, many, noMaxBytes)
	require.ErrorIs(e, err, outbox.ErrClosed, "Claim of a store that was closed")
	_, err = s.FetchPending(e.ctx, many)
	require.ErrorIs(e, err, outbox.ErrClosed, "FetchPending of a store that was closed")

	other := e.openLeased()
	if e.features.Slots == 1 {
		_, err = other.Claim(e.ctx, 0, noMaxBytes)
		require.NoError(e, err, "Claim right after the other instance was closed, which must give up its lease")
	}
	e.await(other, "m2", "m3")
}

func closeLeavesOthersAlone(e *env) {
	s, c := e.openCloser()
	other := e.open()
	e.save(s, unkeyed("m1"))
	require.NoError(e, c.Close(), "Close")
	e.save(other, unkeyed("m2"))
	e.done(other, e.await(other, "m1", "m2")...)
	if e.h.Processed != nil {
		require.True(e, e.mark(e.h.Processed(other), nil, "group", "m"), "isNew")
	}
}

func closeMayBeRepeated(e *env) {
	s, c := e.openCloser()
	e.save(s, unkeyed("m"))
	e.await(s, "m")
	e.together(3, func(int) error { return c.Close() })
	require.NoError(e, c.Close(), "Close of a store that was closed")
	_, unused := e.openCloser()
	require.NoError(e, unused.Close(), "Close of a store that was never used")
}

// A claim that is under way while its store is closed must not bring the lease back.
func closeMayMeetAClaim(e *env) {
	const rounds = 40
	other := e.openLeased()
	for round := range rounds {
		s := e.h.Open(e.T)
		l, ok := s.(outbox.LeasedStore)
		c, closes := s.(io.Closer)
		require.True(e, ok)
		e.needs("Harness.Open to return an io.Closer", closes)
		var all sync.WaitGroup
		var claimErr, closeErr error
		all.Go(func() {
			for claimErr == nil || errors.Is(claimErr, outbox.ErrNoLease) {
				_, claimErr = l.Claim(e.ctx, many, noMaxBytes)
			}
		})
		all.Go(func() {
			time.Sleep(time.Duration(round) * 50 * time.Microsecond) // to meet the claim here and there
			closeErr = c.Close()
		})
		e.within("Close during Claim", all.Wait)
		require.NoError(e, closeErr, "Close during Claim")
		require.ErrorIs(e, claimErr, outbox.ErrClosed, "Claim of a store that was closed")
		if e.features.Slots == 1 {
			_, err := other.Claim(e.ctx, many, noMaxBytes)
			require.NoError(e, err, "Claim after the other instance was closed during a Claim of its own: it must have given "+
				"up "+
				"the lease, and not taken it again")
		}
		e.release(other)
	}
}

func closeEndsItsGoroutines(e *env) {
	before := goleak.IgnoreCurrent() // the harness's own
	s := e.h.Open(e.T)
	e.save(s, unkeyed("m1"), unkeyed("m2"))
	e.done(s, e.await(s, "m1", "m2")[0])
	var notified sync.WaitGroup
	ctx, cancel := context.WithCancel(e.ctx)
	if n, ok := s.(outbox.Notifier); ok {
		notified.Go(func() { _ = n.Notify(ctx, func() {}) })
	}
	if e.h.Processed != nil {
		e.mark(e.h.Processed(s), nil, "group", "m")
	}
	cancel()
	notified.Wait()
	require.NoError(e, closeStore(s), "Close")
	err := goleak.Find(before, goleak.IgnoreTopFunction("database/sql.(*DB).connectionOpener"))
	require.NoError(e, err, "a store must end its goroutines in Close, or have none")
}
