package outbox_test

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/store/memory"
)

func TestForwarder_AnOutageOfAnyLengthCostsNoAttempt(t *testing.T) {
	for name, keys := range map[string]int{"one key": 1, "many keys": 1000} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store, b, seen := newMemory(t), newBroker(), &events{}
				var down atomic.Bool
				down.Store(true)
				attempts := atomic.Int64{}
				b.answer = func(string, *message.Message) error {
					attempts.Add(1)
					if down.Load() {
						return errDown
					}
					return nil
				}
				for i := range 3000 {
					publish(t, store, "topic", newMessage(strconv.Itoa(i), strconv.Itoa(i%keys)))
				}
				run(t, store, b, outbox.WithMaxRetries(2), outbox.WithObserver(seen))
				time.Sleep(10 * time.Minute)
				require.Empty(t, b.payloads())
				require.Less(t, attempts.Load(), int64(600+600), "only probes go out")
				down.Store(false)
				before := time.Now()
				b.await(t, 3000)
				require.Less(t, time.Since(before), 10*time.Second, "on the fake clock")
				require.Empty(t, failed(t, store))
				for _, e := range collect[outbox.FailedEvent](seen) {
					require.False(t, e.Counted)
				}
				require.Len(t, collect[outbox.OutageBegunEvent](seen), 1)
				require.Len(t, collect[outbox.OutageEndedEvent](seen), 1)
				require.GreaterOrEqual(t, collect[outbox.OutageEndedEvent](seen)[0].Duration, 9*time.Minute)
			})
		})
	}
}

// counted hides of a store that it can leave topics out, and counts what is claimed.
type counted struct {
	outbox.LeasedStore
	messages, claims atomic.Int64
}

func (s *counted) Claim(ctx context.Context, limit, maxBytes int) ([]outbox.Message, error) {
	msgs, err := s.LeasedStore.Claim(ctx, limit, maxBytes)
	s.claims.Add(1)
	s.messages.Add(int64(len(msgs)))
	return msgs, err
}

func TestForwarder_OverAStoreThatCannotLeaveTopicsOut_AnOutageIsNoHotLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const backlog = 2000
		store, b := &counted{LeasedStore: newMemory(t)}, newBroker()
		var down atomic.Bool
		down.Store(true)
		b.answer = func(topic string, _ *message.Message) error {
			if topic == "gone" && down.Load() {
				return errDown
			}
			return nil
		}
		for i := range backlog {
			publish(t, store, "gone", newMessage("x", strconv.Itoa(i%500)))
		}
		run(t, store, b)
		time.Sleep(10 * time.Second)
		claims, messages := store.claims.Load(), store.messages.Load()
		time.Sleep(time.Minute)
		require.Less(t, store.messages.Load()-messages, int64(60*(backlog+100)), "each once between two probes")
		require.Less(t, store.claims.Load()-claims, int64(60*100))
		publish(t, store, "works", newMessage("y", ""))
		b.await(t, 1)
		down.Store(false)
		b.await(t, backlog)
	})
}

func TestForwarder_ATopicThatIsGoneStopsNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, b := newMemory(t), newBroker()
		b.answer = func(topic string, _ *message.Message) error {
			if topic == "gone" {
				return errors.New("unknown topic")
			}
			return nil
		}
		for i := range 5000 {
			publish(t, store, "gone", newMessage("x", "gone-"+strconv.Itoa(i)))
		}
		for i := range 1000 {
			publish(t, store, "works", newMessage("y", "works-"+strconv.Itoa(i)))
		}
		run(t, store, b, outbox.WithMaxInFlight(500), outbox.WithBatchSize(100))
		before := time.Now()
		b.await(t, 1000)
		require.Less(t, time.Since(before), 5*time.Second, "on the fake clock")
		require.Empty(t, failed(t, store))
	})
}

func TestForwarder_MessagesThatFailDoNotDelayOthersOfTheirTopic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, b := newMemory(t), newBroker()
		b.answer = func(_ string, msg *message.Message) error {
			if string(msg.Payload) == "poison" {
				return errDown
			}
			return nil
		}
		for i := range 40 {
			publish(t, store, "topic", newMessage("poison", "poison-"+strconv.Itoa(i)))
		}
		run(t, store, b)
		time.Sleep(time.Minute)
		publish(t, store, "topic", newMessage("healthy", "healthy"))
		before := time.Now()
		b.await(t, 1)
		require.Less(t, time.Since(before), 3*time.Second, "the next probe, on the fake clock")
	})
}

func TestForwarder_AFewMessagesThatFailAloneDoNotMakeOthersOfTheirTopicWaitForAProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, b, seen := newMemory(t), newBroker(), &events{}
		b.answer = func(_ string, msg *message.Message) error {
			if string(msg.Payload) == "poison" {
				return errDown
			}
			return nil
		}
		publish(t, store, "topic", newMessage("poison", "a"), newMessage("poison", "b"))
		run(t, store, b, outbox.WithObserver(seen))
		time.Sleep(time.Minute)
		require.Len(t, collect[outbox.OutageBegunEvent](seen), 1, "nothing of the topic was acknowledged")
		for range 100 { // at any time between two attempts
			time.Sleep(70 * time.Millisecond)
			publish(t, store, "topic", newMessage("healthy", "healthy"))
			before := time.Now()
			b.await(t, 1)
			require.Less(t, time.Since(before), 300*time.Millisecond, "as without them, on the fake clock")
			time.Sleep(30 * time.Second) // they fail alone again
		}
	})
}

func TestForwarder_AnOutageThatIsSoonOverCostsLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, b, seen := newMemory(t), newBroker(), &events{}
		attempts, probes := 0, []time.Time{}
		b.answer = func(string, *message.Message) error {
			if attempts++; attempts > 5 {
				probes = append(probes, time.Now())
			}
			if attempts <= 5+8 {
				return errDown
			}
			return nil
		}
		for range 100 {
			publish(t, store, "topic", newMessage("x", ""))
		}
		begun := time.Now()
		run(t, store, b, outbox.WithObserver(seen), outbox.WithConcurrency(1))
		b.await(t, 100) // all, so that nobody notes probes any more
		require.Len(t, collect[outbox.OutageBegunEvent](seen), 1)
		for i, want := range []int64{50, 100, 200, 400, 800, 1000, 1000, 1000, 1000} {
			require.InDelta(t, want, probes[i].Sub(begun).Milliseconds(), 20, "probe %d", i+1)
			begun = probes[i]
		}
	})
}

// pauses notes when it is told which topics to leave out.
type pauses struct {
	*memory.Store
	at []time.Time // the loop's, which is the only one to call
}

func (s *pauses) PauseTopics(topics ...string) {
	s.at = append(s.at, time.Now())
	s.Store.PauseTopics(topics...)
}

func TestForwarder_ManyTopicsThatAreDown_DoNotKeepTheStoreBusyWithThat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, b := &pauses{Store: newMemory(t)}, newBroker()
		var down atomic.Bool
		down.Store(true)
		b.answer = func(topic string, _ *message.Message) error {
			time.Sleep(time.Duration(len(topic)) * time.Millisecond) // so that they fail at different times
			if down.Load() {
				return errDown
			}
			return nil
		}
		const topics, each = 50, 10
		for i := range topics * each {
			publish(t, store, "topic"+strings.Repeat("-", i%topics), newMessage("x", ""))
		}
		run(t, store, b, outbox.WithBatchSize(1)) // each claim is a full one
		time.Sleep(20 * time.Second)
		down.Store(false)
		b.await(t, topics*each)
		for i, at := range store.at[1:] {
			require.GreaterOrEqual(t, at.Sub(store.at[i]), 2*time.Millisecond)
		}
	})
}
