package storetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
)

// env is a subtest: its harness, and the verbs that the checks are written in.
type env struct {
	*testing.T
	h        Harness
	features Features
	ctx      context.Context //nolint:containedctx // of one subtest
	barriers int
}

const (
	// never is a wait that no subtest sees the end of.
	never = time.Hour
	// many is a limit above what any subtest saves.
	many = 1000
)

// soon is a wait that a subtest sees the end of, and long enough for a few calls before that.
func (e *env) soon() time.Duration {
	if e.features.VirtualTime {
		return 10 * time.Second
	}
	return 300 * time.Millisecond
}

// open returns a new relay instance, closed at the end of the subtest.
func (e *env) open() outbox.Store {
	e.Helper()
	s := e.h.Open(e.T)
	e.Cleanup(func() {
		if err := closeStore(s); err != nil {
			e.Errorf("Close: %v", err)
		}
	})
	return s
}

func closeStore(s outbox.Store) error {
	if c, ok := s.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

// begin starts a transaction that is rolled back at the latest at the end of the subtest.
func (e *env) begin(s outbox.Store) Tx {
	e.Helper()
	tx := e.h.Begin(e.T, s)
	e.Cleanup(func() { _ = tx.Rollback() })
	return tx
}

func (e *env) commit(tx Tx) {
	e.Helper()
	require.NoError(e, tx.Commit(), "Commit of the harness's transaction")
}

func (e *env) rollback(tx Tx) {
	e.Helper()
	require.NoError(e, tx.Rollback(), "Rollback of the harness's transaction")
}

// keyed and unkeyed are messages whose payload is their UUID.
func keyed(uuid, key string) outbox.Message {
	return outbox.Message{UUID: uuid, Topic: "topic", Key: key, Payload: []byte(uuid)}
}

func unkeyed(uuid string) outbox.Message { return keyed(uuid, "") }

func (e *env) save(s outbox.Store, msgs ...outbox.Message) {
	e.Helper()
	require.NoError(e, s.Save(e.ctx, nil, msgs...), "Save in a transaction of its own")
}

func (e *env) saveIn(s outbox.Store, tx Tx, msgs ...outbox.Message) {
	e.Helper()
	require.NoError(e, s.Save(e.ctx, tx.Handle(), msgs...), "Save in a transaction of the caller")
}

// tryFetch is FetchPending, for which having no lease is having nothing to do, and a check of what holds for each call.
func (e *env) tryFetch(s outbox.Store, limit int) ([]outbox.Message, error) {
	msgs, err := s.FetchPending(e.ctx, limit)
	if errors.Is(err, outbox.ErrNoLease) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("call FetchPending: %w", err)
	}
	return msgs, checkClaimed(limit, msgs)
}

func (e *env) fetch(s outbox.Store, limit int) []outbox.Message {
	e.Helper()
	msgs, err := e.tryFetch(s, limit)
	require.NoError(e, err)
	return msgs
}

// checkClaimed checks what holds for all that one call claims.
func checkClaimed(limit int, msgs []outbox.Message) error {
	if len(msgs) > max(limit, 0) {
		return fmt.Errorf("%d messages were claimed with a limit of %d", len(msgs), limit)
	}
	seen, last := map[string]bool{}, map[string]string{}
	for _, m := range msgs {
		switch {
		case m.ID == "":
			return fmt.Errorf("the claimed message %q has no id", m.UUID)
		case seen[m.ID]:
			return fmt.Errorf("one call claimed id %s twice", m.ID)
		case m.Status != outbox.StatusProcessing && (m.Status != outbox.StatusFailed || m.LastError == ""):
			return fmt.Errorf("the claimed message %q has status %q, want %q, or %q with a LastError for one that cannot be "+
				"decoded", m.UUID, m.Status, outbox.StatusProcessing, outbox.StatusFailed)
		case m.Key != "" && last[m.Key] != "" && idLess(m.ID, last[m.Key]):
			return fmt.Errorf("of key %q, id %s was claimed behind id %s: ids of one key must ascend",
				m.Key, m.ID, last[m.Key])
		}
		seen[m.ID], last[m.Key] = true, m.ID
	}
	return nil
}

// idLess orders ids by their rows, which are decimal numbers. What follows a point tells claims apart.
func idLess(a, b string) bool {
	a, _, _ = strings.Cut(a, ".")
	b, _, _ = strings.Cut(b, ".")
	if len(a) != len(b) {
		return len(a) < len(b)
	}
	return a < b
}

// poll calls done until it answers true.
func (e *env) poll(what string, done func() bool) {
	e.Helper()
	deadline := time.Now().Add(patience)
	for pause := time.Millisecond; !done(); pause = min(2*pause, 50*time.Millisecond) {
		if time.Now().After(deadline) {
			e.Fatalf("%s: it has not come to that within %v", what, patience)
		}
		time.Sleep(pause)
	}
}

// await claims until messages with all these UUIDs came, and fails if any other does. It returns them in that order.
// Of one key, only the first may be awaited: a store need not claim more at once.
func (e *env) await(s outbox.Store, wanted ...string) []outbox.Message {
	e.Helper()
	return e.awaitFrom([]outbox.Store{s}, wanted...)
}

func (e *env) awaitFrom(instances []outbox.Store, wanted ...string) []outbox.Message {
	e.Helper()
	got := e.collect(instances, wanted, func([]outbox.Message) {})
	ordered := make([]outbox.Message, 0, len(got))
	for _, uuid := range wanted {
		i := slices.IndexFunc(got, func(m outbox.Message) bool { return m.UUID == uuid })
		ordered = append(ordered, got[i])
		got = slices.Delete(got, i, i+1)
	}
	return ordered
}

// drain claims and marks as processed until messages with all these UUIDs came, and fails if any other does. It returns
// them as they came.
func (e *env) drain(s outbox.Store, wanted ...string) []outbox.Message {
	e.Helper()
	return e.collect([]outbox.Store{s}, wanted, func(msgs []outbox.Message) { e.done(s, msgs...) })
}

func (e *env) collect(instances []outbox.Store, wanted []string, each func([]outbox.Message)) []outbox.Message {
	e.Helper()
	missing := slices.Clone(wanted)
	var got []outbox.Message
	deadline := time.Now().Add(patience)
	for pause := time.Millisecond; len(missing) > 0; pause = min(2*pause, 50*time.Millisecond) {
		for _, s := range instances {
			msgs := e.fetch(s, many)
			for _, m := range msgs {
				i := slices.Index(missing, m.UUID)
				require.GreaterOrEqual(e, i, 0, "FetchPending returned message %q, which nobody may claim now; claimable are %q",
					m.UUID, missing)
				missing = slices.Delete(missing, i, i+1)
			}
			got = append(got, msgs...)
			if len(msgs) > 0 {
				each(msgs)
			}
		}
		if len(missing) == 0 {
			break
		}
		require.True(e, time.Now().Before(deadline), "FetchPending does not return %q, which may be claimed, for %v; it "+
			"returned %q", missing, patience, uuids(got))
		time.Sleep(pause)
	}
	return got
}

// arrivals returns, and leaves claimed, what can be claimed now. It saves one more message and waits for that: what was
// committed before it would have come with it.
func (e *env) arrivals(s outbox.Store, others ...outbox.Store) []outbox.Message {
	e.Helper()
	e.barriers++
	barrier := outbox.Message{UUID: fmt.Sprintf("barrier-%d", e.barriers), Topic: "barriers"}
	e.save(s, barrier)
	var got []outbox.Message
	e.poll("FetchPending returns a message without a key that was just saved", func() bool {
		for _, instance := range append([]outbox.Store{s}, others...) {
			msgs := e.fetch(instance, many)
			i := slices.IndexFunc(msgs, func(m outbox.Message) bool { return m.UUID == barrier.UUID })
			if i < 0 {
				got = append(got, msgs...)
				continue
			}
			e.done(instance, msgs[i])
			got = append(got, slices.Delete(msgs, i, i+1)...)
			return true
		}
		return false
	})
	return got
}

// nothing fails with why if anything can be claimed.
func (e *env) nothing(s outbox.Store, why string, args ...any) {
	e.Helper()
	require.Empty(e, uuids(e.arrivals(s)), "messages were returned, though "+fmt.Sprintf(why, args...))
}

// done marks messages as processed.
func (e *env) done(s outbox.Store, msgs ...outbox.Message) {
	e.Helper()
	require.NoError(e, s.MarkProcessed(e.ctx, ids(msgs)...), "MarkProcessed of claimed messages")
}

func uuids(msgs []outbox.Message) []string {
	list := make([]string, len(msgs))
	for i, m := range msgs {
		list[i] = m.UUID
	}
	return list
}

func ids(msgs []outbox.Message) []string {
	list := make([]string, len(msgs))
	for i, m := range msgs {
		list[i] = m.ID
	}
	return list
}

// numbered returns prefix1, prefix2, ... prefixN.
func numbered(prefix string, n int) []string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprintf("%s%d", prefix, i+1)
	}
	return list
}

// together runs f n times at once and fails with what any of them returned. f must not use require.
func (e *env) together(n int, f func(i int) error) {
	e.Helper()
	errs := make([]error, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { errs[i] = f(i) })
	}
	all.Wait()
	require.NoError(e, errors.Join(errs...))
}

// within fails unless f, which must not use require, returns. In virtual time a goroutine that is left behind would run
// for ever, so this is for subtests that run alone.
func (e *env) within(what string, f func()) {
	e.Helper()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		f()
	}()
	select {
	case <-ended:
	case <-time.After(patience):
		buf := make([]byte, 1<<20)
		e.Fatalf("%s: it hangs:\n%s", what, buf[:runtime.Stack(buf, true)])
	}
}

// needs skips the subtest unless there is what it needs.
func (e *env) needs(name string, there bool) {
	e.Helper()
	if !there {
		e.Skipf("needs storetest.%s", name)
	}
}
