package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/store/memory"
)

// heldStore lets a test hold up, or fail, the steps of a Forwarder.
type heldStore struct {
	*memory.Store
	claim  func(ctx context.Context, claim func() ([]outbox.Message, error)) ([]outbox.Message, error)
	settle func() error // before it
}

func (s *heldStore) Claim(ctx context.Context, limit, maxBytes int) ([]outbox.Message, error) {
	claim := func() ([]outbox.Message, error) { return s.Store.Claim(ctx, limit, maxBytes) }
	if s.claim == nil {
		return claim()
	}
	return s.claim(ctx, claim)
}

func (s *heldStore) Settle(ctx context.Context, outcomes ...outbox.Outcome) error {
	if s.settle != nil {
		if err := s.settle(); err != nil {
			return err
		}
	}
	return s.Store.Settle(ctx, outcomes...)
}

// stopScene is a Forwarder in the middle of a step of its work.
type stopScene struct {
	store   *heldStore
	b       *broker
	f       *outbox.Forwarder
	cancel  context.CancelFunc
	ended   chan error
	opts    []outbox.Option
	healthy atomic.Bool // what was wrong no longer is
}

const sceneMessages, sceneKeys = 12, 3

// stopSteps bring a Forwarder to each step. The function that they return lets the step go on; where there is none, the
// Forwarder must end at once.
var stopSteps = map[string]func(t *testing.T, s *stopScene) (goOn func()){
	"idle": func(*testing.T, *stopScene) func() { return nil },
	"a claim that heeds its context": func(_ *testing.T, s *stopScene) func() {
		s.store.claim = func(ctx context.Context, claim func() ([]outbox.Message, error)) ([]outbox.Message, error) {
			if s.healthy.Swap(true) {
				return claim()
			}
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return nil
	},
	"a claim that answers late": func(_ *testing.T, s *stopScene) func() {
		hold := make(chan struct{})
		s.store.claim = func(_ context.Context, claim func() ([]outbox.Message, error)) ([]outbox.Message, error) {
			msgs, err := claim()
			<-hold
			return msgs, err
		}
		return func() { close(hold) }
	},
	"a message in the publisher": func(_ *testing.T, s *stopScene) func() {
		hold := make(chan struct{})
		s.b.answer = func(string, *message.Message) error { <-hold; return nil }
		s.opts = append(s.opts, outbox.WithConcurrency(2))
		return func() { close(hold) }
	},
	"a message in a publisher that hangs": func(_ *testing.T, s *stopScene) func() {
		hold := make(chan struct{})
		s.b.answer = func(string, *message.Message) error { <-hold; return nil }
		s.opts = append(s.opts, outbox.WithPublishTimeout(time.Second))
		return func() { close(hold) }
	},
	"marking": func(_ *testing.T, s *stopScene) func() {
		hold := make(chan struct{})
		s.store.settle = func() error { <-hold; return nil }
		return func() { close(hold) }
	},
	"marking, which fails": func(_ *testing.T, s *stopScene) func() {
		s.store.settle = func() error { return s.downUntilHealthy() }
		return func() { s.healthy.Store(true) }
	},
	"waiting for the next attempt": func(_ *testing.T, s *stopScene) func() {
		s.b.answer = func(_ string, msg *message.Message) error {
			if string(msg.Payload) == "0" { // nothing shows that it is to blame: the others were sent with it
				return s.downUntilHealthy()
			}
			return nil
		}
		return nil
	},
	"an outage": func(t *testing.T, s *stopScene) func() {
		s.b.answer = func(string, *message.Message) error { return s.downUntilHealthy() }
		t.Cleanup(func() { require.Empty(t, failed(t, s.store)) })
		return nil
	},
	"no database": func(_ *testing.T, s *stopScene) func() {
		s.store.claim = func(_ context.Context, claim func() ([]outbox.Message, error)) ([]outbox.Message, error) {
			if err := s.downUntilHealthy(); err != nil {
				return nil, err
			}
			return claim()
		}
		return nil
	},
	"standing by": func(t *testing.T, s *stopScene) func() {
		other := s.store.NewInstance()
		_, err := other.Claim(t.Context(), 5, 1<<20)
		require.NoError(t, err)
		go func() { // it ends when this one does
			for !s.healthy.Load() {
				time.Sleep(time.Second)
			}
			assert.NoError(t, other.Close())
		}()
		return nil
	},
}

func (s *stopScene) downUntilHealthy() error {
	if s.healthy.Load() {
		return nil
	}
	return errDown
}

// waysToStop return what Close has.
var waysToStop = map[string]func(s *stopScene) []error{
	"Close":       func(s *stopScene) []error { return []error{s.f.Close()} },
	"Close twice": func(s *stopScene) []error { return []error{s.f.Close(), s.f.Close()} },
	"Close by many at once": func(s *stopScene) []error {
		errs := make([]error, 20)
		var all sync.WaitGroup
		for i := range errs {
			all.Go(func() { errs[i] = s.f.Close() })
		}
		all.Wait()
		return errs
	},
	"the context": func(s *stopScene) []error { s.cancel(); return nil },
	"the context and Close": func(s *stopScene) []error {
		s.cancel()
		return []error{s.f.Close()}
	},
}

// At whatever step and however a Forwarder is stopped: it waits for what is under way and for nothing else, leaves
// nothing claimed, loses nothing, counts no attempt, and nothing is published twice.
func TestForwarder_MayBeStoppedAtEveryStep(t *testing.T) {
	for step, prepare := range stopSteps {
		for way, stop := range waysToStop {
			t.Run(step+"/"+way, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := &stopScene{store: &heldStore{Store: newMemory(t)}, b: newBroker(), ended: make(chan error, 1)}
					goOn := prepare(t, s)
					s.start(t)
					time.Sleep(5 * time.Second) // until it can get no further

					before := time.Now()
					stopped := make(chan []error, 1)
					go func() { stopped <- stop(s) }()
					synctest.Wait()
					if goOn != nil {
						require.Empty(t, s.ended, "it must wait for what is under way")
						goOn()
					}
					require.NoError(t, errors.Join(<-stopped...))
					require.NoError(t, <-s.ended)
					require.Less(t, time.Since(before), outbox.DefaultConfig().CloseTimeout/2, "on the fake clock")
					s.healthy.Store(true)
					s.verify(t, way != "the context")
				})
			})
		}
	}
}

// start publishes messages and runs the Forwarder.
func (s *stopScene) start(t *testing.T) {
	t.Helper()
	for i := range sceneMessages {
		publish(t, s.store, "topic", newMessage(strconv.Itoa(i), strconv.Itoa(i%sceneKeys)))
	}
	var err error
	s.f, err = outbox.NewForwarder(s.store, s.b, append(s.opts, outbox.WithLogger(watermill.NopLogger{}))...)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	go func() { s.ended <- s.f.Run(ctx) }()
}

// verify has the next run publish what is left. After a Close that is another instance's.
func (s *stopScene) verify(t *testing.T, closed bool) {
	t.Helper()
	for _, m := range pendingOf(t, s.store.Store) {
		require.Zero(t, m.Retries, "%s", m.LastError)
	}
	require.Empty(t, failed(t, s.store))
	next := s.f
	if closed {
		require.ErrorIs(t, s.f.Run(t.Context()), outbox.ErrClosed)
		_, err := s.f.Drain(t.Context())
		require.ErrorIs(t, err, outbox.ErrClosed)
		time.Sleep(time.Second) // where another instance had the lease, it is about to end
		other := s.store.NewInstance()
		next, err = outbox.NewForwarder(other, s.b, outbox.WithLogger(watermill.NopLogger{}))
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, other.Close()) })
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second) // less than the leases would last
	defer cancel()
	require.NoError(t, next.Run(ctx))
	last, payloads := map[string]int{}, s.b.payloads()
	require.Len(t, payloads, sceneMessages, "all are published, none of them twice")
	for _, p := range payloads {
		i, err := strconv.Atoi(p)
		require.NoError(t, err)
		key := strconv.Itoa(i % sceneKeys)
		require.Equal(t, i/sceneKeys, last[key], "in the order of key %s", key)
		last[key]++
	}
	require.Empty(t, pendingOf(t, s.store.Store))
}

func TestForwarder_ClosedBeforeItRan_NeverRuns(t *testing.T) {
	store, b := newMemory(t), newBroker()
	publish(t, store, "topic", newMessage("x", ""))
	f, err := outbox.NewForwarder(store, b, outbox.WithLogger(watermill.NopLogger{}))
	require.NoError(t, err)
	require.NoError(t, f.Close())
	require.NoError(t, f.Close())
	require.ErrorIs(t, f.Run(t.Context()), outbox.ErrClosed)
	_, err = f.Drain(t.Context())
	require.ErrorIs(t, err, outbox.ErrClosed)
	require.Empty(t, b.payloads())
	require.Len(t, pendingOf(t, store), 1)
}

func TestForwarder_RunOnAContextThatHasEnded_ReturnsAndMayRunAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, b := newMemory(t), newBroker()
		publish(t, store, "topic", newMessage("x", ""))
		f, err := outbox.NewForwarder(store, b, outbox.WithLogger(watermill.NopLogger{}))
		require.NoError(t, err)
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		before := time.Now()
		require.NoError(t, f.Run(ended))
		require.Less(t, time.Since(before), time.Second, "on the fake clock")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.NoError(t, f.Run(ctx))
		require.Equal(t, []string{"x"}, b.payloads())
	})
}

// Invariant: whichever comes first, Run ends, Close returns after it, and the lease is free.
func TestForwarder_CloseWhileRunBegins(t *testing.T) {
	for range 100 {
		store := newMemory(t)
		f, err := outbox.NewForwarder(store, newBroker(), outbox.WithLogger(watermill.NopLogger{}))
		require.NoError(t, err)
		publish(t, store, "topic", newMessage("x", ""))
		var both sync.WaitGroup
		both.Go(func() {
			if err := f.Run(context.Background()); err != nil {
				assert.ErrorIs(t, err, outbox.ErrClosed)
			}
		})
		both.Go(func() { assert.NoError(t, f.Close()) })
		both.Wait()
		other := store.NewInstance()
		_, err = other.Claim(t.Context(), 1, 1<<20)
		require.NoError(t, err, "the lease is free")
		require.NoError(t, other.Close())
	}
}

func TestForwarder_RunsOneRunOrDrainAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, b := newMemory(t), newBroker()
		hold := make(chan struct{})
		b.answer = func(string, *message.Message) error { <-hold; return nil }
		publish(t, store, "topic", newMessage("x", "a"), newMessage("y", "a"))
		f, err := outbox.NewForwarder(store, b, outbox.WithLogger(watermill.NopLogger{}))
		require.NoError(t, err)
		type drained struct {
			n   int
			err error
		}
		ended := make(chan drained, 1)
		go func() {
			n, err := f.Drain(t.Context())
			ended <- drained{n, err}
		}()
		synctest.Wait()
		require.ErrorIs(t, f.Run(t.Context()), outbox.ErrAlreadyRunning)
		_, err = f.Drain(t.Context())
		require.ErrorIs(t, err, outbox.ErrAlreadyRunning)
		close(hold)
		require.Equal(t, drained{2, nil}, <-ended, "those that were refused have not disturbed it")

		ctx, cancel := context.WithCancel(t.Context())
		ran := make(chan error, 1)
		go func() { ran <- f.Run(ctx) }()
		synctest.Wait()
		_, err = f.Drain(t.Context())
		require.ErrorIs(t, err, outbox.ErrAlreadyRunning)
		publish(t, store, "topic", newMessage("z", "a"))
		b.await(t, 3)
		cancel()
		require.NoError(t, <-ran)
		require.Equal(t, []string{"x", "y", "z"}, b.payloads())
	})
}

func TestDrain_ThatIsClosedBeforeItsEnd_SaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, b := newMemory(t), newBroker()
		hold := make(chan struct{})
		b.answer = func(string, *message.Message) error { <-hold; return nil }
		publish(t, store, "topic", newMessage("x", "a"), newMessage("y", "a"))
		f, err := outbox.NewForwarder(store, b, outbox.WithLogger(watermill.NopLogger{}))
		require.NoError(t, err)
		ended := make(chan error, 1)
		go func() {
			_, err := f.Drain(t.Context())
			ended <- err
		}()
		synctest.Wait()
		closed := make(chan error, 1)
		go func() { closed <- f.Close() }()
		synctest.Wait()
		close(hold)
		require.NoError(t, <-closed)
		require.ErrorIs(t, <-ended, outbox.ErrClosed, "a script must not take it for drained")
		require.Len(t, pendingOf(t, store), 1)
	})
}

// The router's own end, too, is quick in an outage, and costs nothing.
func TestRouterPlugin_EndsInAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, b := newMemory(t), newBroker()
		b.answer = func(string, *message.Message) error { return errDown }
		for i := range 20 {
			publish(t, store, "topic", newMessage(strconv.Itoa(i), strconv.Itoa(i%3)))
		}
		f, err := outbox.NewForwarder(store, b, outbox.WithLogger(watermill.NopLogger{}))
		require.NoError(t, err)
		router := newRouter(t)
		router.AddPlugin(f.RouterPlugin)
		ended := make(chan error, 1)
		go func() { ended <- router.Run(t.Context()) }()
		time.Sleep(10 * time.Minute)
		before := time.Now()
		require.NoError(t, router.Close())
		require.NoError(t, <-ended)
		require.Less(t, time.Since(before), 10*time.Second, "on the fake clock")
		require.Len(t, pendingOf(t, store), 20)
		for _, m := range pendingOf(t, store) {
			require.Zero(t, m.Retries)
		}
		b.answer = nil
		n, err := drain(t, store, b)
		require.NoError(t, err)
		require.Equal(t, 20, n)
	})
}

func TestRouterPlugin_TwoOverOneStore_TheSecondSaysSoAndTheFirstGoesOn(t *testing.T) {
	store, b, router := newMemory(t), newBroker(), newRouter(t)
	refused := make(chan error, 2)
	for range 2 {
		f, err := outbox.NewForwarder(store, b, outbox.WithLogger(&errorLog{refused: refused}))
		require.NoError(t, err)
		router.AddPlugin(f.RouterPlugin)
	}
	ended := make(chan error, 1)
	go func() { ended <- router.Run(t.Context()) }()
	require.ErrorIs(t, <-refused, outbox.ErrAlreadyRunning)
	publish(t, store, "topic", newMessage("x", ""))
	b.await(t, 1)
	require.NoError(t, router.Close())
	require.NoError(t, <-ended)
	require.Empty(t, refused)
	require.Empty(t, pendingOf(t, store))
}

func TestForwarder_SaysThatAMarkedMessageWasNotClaimed_WhereSomebodyLooksForIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, b, logger := &heldStore{Store: newMemory(t)}, newBroker(), watermill.NewCaptureLogger()
		store.settle = func() error { return fmt.Errorf("memory: %w", outbox.ErrNotClaimed) }
		publish(t, store, "topic", newMessage("x", ""))
		run(t, store, b, outbox.WithLogger(logger))
		b.await(t, 1)
		synctest.Wait()
		require.Empty(t, logger.Captured()[watermill.ErrorLogLevel])
		require.Len(t, logger.Captured()[watermill.DebugLogLevel], 1)
		require.ErrorIs(t, logger.Captured()[watermill.DebugLogLevel][0].Fields["err"].(error), outbox.ErrNotClaimed)
	})
}

// errorLog hands on the errors that are logged.
type errorLog struct {
	watermill.NopLogger
	refused chan error
}

func (l *errorLog) Error(_ string, err error, _ watermill.LogFields) { l.refused <- err }
