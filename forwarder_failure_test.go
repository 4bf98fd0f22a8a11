package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/store/memory"
)

// Tests in a synctest bubble run on a clock that goes forward when all goroutines wait: ten minutes take no time.

// events collects what an Observer hears.
type events struct {
	mu  sync.Mutex
	all []outbox.Event
}

func (e *events) Observe(_ context.Context, event outbox.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, event)
}

func collect[T outbox.Event](e *events) []T {
	e.mu.Lock()
	defer e.mu.Unlock()
	var of []T
	for _, event := range e.all {
		if t, ok := event.(T); ok {
			of = append(of, t)
		}
	}
	return of
}

var errDown = errors.New("connection refused")

func failed(t *testing.T, store outbox.Inspector) []outbox.Message {
	t.Helper()
	msgs, err := store.ListFailed(context.Background(), "", 100)
	require.NoError(t, err)
	return msgs
}

func TestForwarder_SetsAPoisonMessageAside_AndItsKeyGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, b, seen := newMemory(t), newBroker(), &events{}
		b.answer = func(_ string, msg *message.Message) error {
			if string(msg.Payload) == "poison" {
				return errors.New("cannot be encoded")
			}
			return nil
		}
		run(t, store, b, outbox.WithMaxRetries(3), outbox.WithObserver(seen))
		publish(t, store, "topic", newMessage("poison", "a"), newMessage("behind", "a"))
		for len(failed(t, store)) == 0 { // others show that the topic works
			publish(t, store, "topic", newMessage("other", "b"))
			time.Sleep(100 * time.Millisecond)
		}
		synctest.Wait()
		require.Contains(t, b.payloads(), "behind")
		aside := failed(t, store)[0]
		require.Equal(t, "poison", string(aside.Payload))
		require.Equal(t, 3, aside.Retries)
		require.Equal(t, "cannot be encoded", aside.LastError)
		require.Len(t, collect[outbox.SetAsideEvent](seen), 1)
		require.Empty(t, collect[outbox.OutageBegunEvent](seen))
	})
}

func TestForwarder_APermanentErrorSetsAsideAtOnce_AndIsNoOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tooLarge := errors.New("message too large")
		store, b, seen := newMemory(t), newBroker(), &events{}
		b.answer = func(_ string, msg *message.Message) error {
			if len(msg.Payload) > 100 {
				return fmt.Errorf("kafka: %w", tooLarge)
			}
			return nil
		}
		for range 20 {
			publish(t, store, "topic", newMessage(string(make([]byte, 200)), "a"))
		}
		publish(t, store, "topic", newMessage("small", "a"))
		run(t, store, b, outbox.WithObserver(seen),
			outbox.WithPermanentError(func(err error) bool { return errors.Is(err, tooLarge) }))
		b.await(t, 1)
		synctest.Wait()
		require.Len(t, failed(t, store), 20)
		require.Empty(t, collect[outbox.OutageBegunEvent](seen))
		require.Empty(t, collect[outbox.FailedEvent](seen))
	})
}

func TestForwarder_AHungPublishHoldsUpItsKeyAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, b, seen := newMemory(t), newBroker(), &events{}
		hang := make(chan struct{})
		b.answer = func(_ string, msg *message.Message) error {
			if string(msg.Payload) == "hang" {
				<-hang
			}
			return nil
		}
		publish(t, store, "topic", newMessage("hang", "a"), newMessage("behind", "a"))
		for i := range 100 {
			publish(t, store, "topic", newMessage("free", strconv.Itoa(i)))
		}
		run(t, store, b, outbox.WithConcurrency(1), outbox.WithPublishTimeout(time.Second), outbox.WithObserver(seen))
		b.await(t, 100)
		require.Len(t, collect[outbox.StalledEvent](seen), 1)
		require.NotContains(t, b.payloads(), "behind")
		close(hang)
		b.await(t, 2)
		require.Equal(t, []string{"hang", "behind"}, b.payloads()[100:])
	})
}

func TestForwarder_AHungPublishHoldsUpItsKeyAlone_WhenItsLeaseGoesAwayAndComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size, window, n = 100 << 10, 1 << 20, 20
		store, b, seen := newMemory(t), newBroker(), &events{}
		hang := make(chan struct{})
		b.answer = func(_ string, msg *message.Message) error {
			if len(msg.Payload) == size {
				<-hang
			}
			return nil
		}
		for range n {
			publish(t, store, "topic", newMessage(strings.Repeat("x", size), "hung"))
		}
		run(t, store, b, outbox.WithMaxInFlightBytes(window), outbox.WithPublishTimeout(time.Second),
			outbox.WithObserver(seen))
		for i := range 10 {
			time.Sleep(10 * time.Second) // it has stalled
			if i < 3 {
				store.Advance(time.Minute)
			}
			publish(t, store, "topic", newMessage("y", strconv.Itoa(i)))
			b.await(t, 1)
		}
		var claims int
		for _, e := range collect[outbox.ClaimedEvent](seen) {
			if len(e.Messages[0].Payload) == size {
				claims++
			}
		}
		require.LessOrEqual(t, claims, 110, "about one a second, since what is claimed is read again")
		close(hang)
		b.await(t, n)
		time.Sleep(5 * time.Second)
		require.Len(t, b.payloads(), 10+n, "and nothing twice")
	})
}

func TestForwarder_AHungTopicOfLargeMessagesStopsNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size, window = 100 << 10, 1 << 20
		store, b := newMemory(t), newBroker()
		hang := make(chan struct{})
		var hanging atomic.Int32
		b.answer = func(topic string, _ *message.Message) error {
			if topic == "hung" {
				hanging.Add(1)
				<-hang
			}
			return nil
		}
		for range 100 {
			publish(t, store, "hung", newMessage(strings.Repeat("x", size), ""))
		}
		run(t, store, b, outbox.WithMaxInFlightBytes(window), outbox.WithPublishTimeout(time.Second))
		for range 100 {
			publish(t, store, "works", newMessage("y", ""))
			b.await(t, 1)
			time.Sleep(10 * time.Second) // probes hang, too
		}
		require.LessOrEqual(t, hanging.Load(), int32(2*(window/size+1)))
		close(hang)
		b.await(t, 100)
	})
}

func TestForwarder_ManyHungPublishesMayReturnAtOnce_AndTheirWorkersComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const concurrency, hung = 3, 20
		store, b := newMemory(t), newBroker()
		hang := make(chan struct{})
		var running, most atomic.Int32
		b.answer = func(_ string, msg *message.Message) error {
			if string(msg.Payload) == "hang" {
				<-hang
				return nil
			}
			most.Store(max(most.Load(), running.Add(1)))
			time.Sleep(time.Second)
			running.Add(-1)
			return nil
		}
		stalled := 0
		run(t, store, b, outbox.WithConcurrency(concurrency), outbox.WithPublishTimeout(5*time.Second),
			outbox.WithObserver(outbox.ObserverFunc(func(_ context.Context, e outbox.Event) {
				if _, ok := e.(outbox.StalledEvent); !ok {
					return
				}
				if stalled++; stalled == hung {
					close(hang)
					time.Sleep(time.Second) // until all of them wait for the loop, which waits here
				}
			})))
		for i := range hung {
			publish(t, store, strconv.Itoa(i), newMessage("hang", ""))
			if i < concurrency { // one at a time first
				time.Sleep(10 * time.Second)
			}
		}
		time.Sleep(time.Minute)
		b.await(t, hung)
		for range 4 * concurrency {
			publish(t, store, "topic", newMessage("works", ""))
		}
		b.await(t, 4*concurrency)
		require.EqualValues(t, concurrency, most.Load())
	})
}

func TestForwarder_CleansUpSoonAfterItsStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemory(t)
		require.NoError(t, store.Save(t.Context(), nil, outbox.Message{Topic: "topic"}))
		msgs, err := store.FetchPending(t.Context(), 1)
		require.NoError(t, err)
		require.NoError(t, store.MarkProcessed(t.Context(), msgs[0].ID))
		time.Sleep(2 * time.Hour)
		run(t, store, newBroker(), outbox.WithRetention(time.Hour), outbox.WithCleanupInterval(24*time.Hour))
		time.Sleep(time.Minute)
		n, err := store.DeleteProcessedBefore(t.Context(), time.Now())
		require.NoError(t, err)
		require.Zero(t, n, "it was deleted already")
	})
}

func TestForwarder_Close_WaitsForWhatIsInFlight_AndLeavesNothingClaimed(t *testing.T) {
	forEachStore(t, func(t *testing.T, store outbox.LeasedStore) {
		b := newBroker()
		begun, goOn := make(chan struct{}, 100), make(chan struct{})
		b.answer = func(string, *message.Message) error {
			begun <- struct{}{}
			<-goOn
			return nil
		}
		for i := range 10 {
			publish(t, store, "topic", newMessage(strconv.Itoa(i), strconv.Itoa(i%5)))
		}
		f, err := outbox.NewForwarder(store, b, outbox.WithConcurrency(2))
		require.NoError(t, err)
		ended := make(chan error, 1)
		go func() { ended <- f.Run(context.Background()) }()
		<-begun
		<-begun
		closed := make(chan error, 1)
		go func() { closed <- f.Close() }()
		select {
		case err := <-closed:
			require.FailNow(t, "Close did not wait", "it returned %v", err)
		case <-time.After(20 * time.Millisecond): // a Close that does not wait has returned by then
		}
		close(goOn)
		require.NoError(t, <-closed)
		require.NoError(t, <-ended)
		require.Len(t, b.payloads(), 2)

		again := newBroker()
		next, err := outbox.NewForwarder(store, again)
		require.NoError(t, err)
		n, err := next.Drain(context.Background())
		require.NoError(t, err)
		require.Equal(t, 8, n, "what was in flight is marked, everything else free")
		require.ErrorIs(t, f.Run(context.Background()), outbox.ErrClosed)
	})
}

func TestForwarder_Close_GivesUpAfterTheCloseTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, b := newMemory(t), newBroker()
		hang := make(chan struct{})
		defer close(hang)
		b.answer = func(string, *message.Message) error { <-hang; return nil }
		publish(t, store, "topic", newMessage("x", ""))
		f, err := outbox.NewForwarder(store, b, outbox.WithCloseTimeout(time.Second))
		require.NoError(t, err)
		ended := make(chan error, 1)
		go func() { ended <- f.Run(context.Background()) }()
		synctest.Wait()
		require.ErrorIs(t, f.Close(), outbox.ErrCloseTimeout)
		require.ErrorIs(t, <-ended, outbox.ErrCloseTimeout)
		require.Len(t, pendingOf(t, store), 1, "it stays in the outbox")
	})
}

func TestForwarder_TakesOverFromAnInstanceThatHasGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemory(t)
		gone := store.NewInstance()
		for i := range 10 {
			publish(t, store, "topic", newMessage(strconv.Itoa(i), "key"))
		}
		claimed, err := gone.Claim(context.Background(), 4, 1<<20)
		require.NoError(t, err)
		require.Len(t, claimed, 4)
		b := newBroker()
		seen := &events{}
		f := run(t, store, b, outbox.WithObserver(seen))
		synctest.Wait()
		require.Empty(t, b.payloads(), "the other instance holds the lease")
		store.Advance(time.Minute) // as if gone had not renewed it
		f.Wake()
		b.await(t, 10)
		require.Equal(t, []string{"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"}, b.payloads())
		require.NotEmpty(t, collect[outbox.LeaseGainedEvent](seen))
		require.False(t, gone.Owned(claimed[0].ID))
		require.NoError(t, gone.Close())
	})
}

func TestForwarder_DoesNotPublishWhatItsLeaseNoLongerCovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, b := newMemory(t), newBroker()
		first, goOn := make(chan struct{}), make(chan struct{})
		once := sync.Once{}
		b.answer = func(string, *message.Message) error {
			once.Do(func() { close(first); <-goOn })
			return nil
		}
		for i := range 5 {
			publish(t, store, "topic", newMessage(strconv.Itoa(i), "key"))
		}
		run(t, store, b)
		<-first
		store.Advance(time.Minute)
		other := store.NewInstance()
		claimed, err := other.Claim(context.Background(), 10, 1<<20)
		require.NoError(t, err)
		require.Len(t, claimed, 5)
		close(goOn)
		synctest.Wait()
		require.Equal(t, []string{"0"}, b.payloads(), "the one that was being published, and none behind it")
		require.NoError(t, other.Close())
	})
}

func TestForwarder_GoesOnWithAKey_WhenItsLeaseWentAwayAndCameBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, b := newMemory(t), newBroker()
		begun, goOn := make(chan struct{}), make(chan struct{})
		b.answer = func(_ string, msg *message.Message) error {
			if string(msg.Payload) == "A" {
				close(begun)
				<-goOn
			}
			return nil
		}
		publish(t, store, "topic", newMessage("A", "key"), newMessage("B", "key"))
		run(t, store, b)
		<-begun
		other := store.NewInstance()
		store.Advance(time.Minute) // the lease ends, and another instance publishes both and hands back
		msgs, err := other.Claim(t.Context(), 10, 1<<20)
		require.NoError(t, err)
		require.Len(t, msgs, 2)
		require.NoError(t, other.MarkProcessed(t.Context(), msgs[0].ID, msgs[1].ID))
		time.Sleep(5 * time.Second) // the first one notices
		require.NoError(t, other.Close())
		publish(t, store, "topic", newMessage("C", "key"), newMessage("Z", "another"))
		b.await(t, 1) // Z: it leads again, and has claimed C while A is still being published
		close(goOn)
		b.await(t, 2)
		require.Equal(t, []string{"Z", "A", "C"}, b.payloads())
		publish(t, store, "topic", newMessage("D", "key"))
		b.await(t, 1)
	})
}

func TestForwarder_TwoOverOneStoreAreRefused(t *testing.T) {
	store := newMemory(t)
	run(t, store, newBroker())
	second, err := outbox.NewForwarder(store, newBroker())
	require.NoError(t, err)
	require.ErrorIs(t, second.Run(context.Background()), outbox.ErrAlreadyRunning)
	_, err = second.Drain(context.Background())
	require.ErrorIs(t, err, outbox.ErrAlreadyRunning)
}

func TestForwarder_BoundsWhatIsInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, b := newMemory(t), newBroker()
		goOn := make(chan struct{})
		running := atomic.Int64{}
		b.answer = func(string, *message.Message) error {
			running.Add(1)
			<-goOn
			return nil
		}
		for range 100 {
			publish(t, store, "topic", newMessage(string(make([]byte, 1<<10)), ""))
		}
		run(t, store, b, outbox.WithMaxInFlightBytes(10<<10))
		time.Sleep(time.Minute)
		require.LessOrEqual(t, running.Load(), int64(10))
		require.Positive(t, running.Load())
		close(goOn)
		b.await(t, 100)
	})
}

// flakyMarks fails Settle while it is told to.
type flakyMarks struct {
	*memory.Store
	failing atomic.Bool
	// lost makes Settle do its work and then claim that it has failed.
	lost atomic.Bool
}

func (s *flakyMarks) Settle(ctx context.Context, outcomes ...outbox.Outcome) error {
	if s.failing.Load() {
		return errDown
	}
	err := s.Store.Settle(ctx, outcomes...)
	if s.lost.CompareAndSwap(true, false) {
		return errDown
	}
	return err
}

func TestForwarder_MarksAreTriedUntilTheySucceed_AndNothingIsPublishedTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, b := &flakyMarks{Store: newMemory(t)}, newBroker()
		store.failing.Store(true)
		for i := range 500 {
			publish(t, store, "topic", newMessage(strconv.Itoa(i), strconv.Itoa(i%50)))
		}
		run(t, store, b, outbox.WithMaxInFlight(100))
		time.Sleep(time.Minute)
		require.LessOrEqual(t, len(b.payloads()), 100, "what is not marked stays in flight")
		store.failing.Store(false)
		store.lost.Store(true)
		b.await(t, 500)
		time.Sleep(time.Minute)
		require.Len(t, b.payloads(), 500)
		require.Empty(t, pendingOf(t, store.Store))
	})
}

func TestForwarder_KeepsWhatRetentionSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, b := newMemory(t), newBroker()
		run(t, store, b, outbox.WithRetention(time.Hour), outbox.WithCleanupInterval(10*time.Minute))
		publish(t, store, "topic", newMessage("x", ""))
		b.await(t, 1)
		time.Sleep(30 * time.Minute)
		n, err := store.DeleteProcessedBefore(context.Background(), time.Now().Add(-29*time.Minute))
		require.NoError(t, err)
		require.EqualValues(t, 1, n, "it was still in the archive")
		publish(t, store, "topic", newMessage("y", ""))
		b.await(t, 1)
		time.Sleep(2 * time.Hour)
		n, err = store.DeleteProcessedBefore(context.Background(), time.Now())
		require.NoError(t, err)
		require.Zero(t, n, "the clean-up was faster")
	})
}
