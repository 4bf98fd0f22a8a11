package outbox_test

import (
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/components/delay"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/store/memory"
)

// Invariant: whichever way the database's clock jumps, nothing is lost, a delayed message is early or late by the jump and
// no more, a retry is late by no more than it, and whose lease has ended by it does not keep its messages.
func TestForwarder_LosesNothing_WhenTheClockOfTheDatabaseJumps(t *testing.T) {
	const wait, slack, due = 2 * time.Hour, 2 * time.Second, 20
	for _, step := range []time.Duration{-time.Hour, time.Hour} {
		t.Run(step.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := newMemory(t, memory.WithSlots(4))
				gone := store.NewInstance() // holds slots, and publishes nothing
				require.NoError(t, store.Save(t.Context(), nil, outbox.Message{Topic: "topic"}))
				_, err := gone.Claim(t.Context(), 1, 1<<20)
				require.NoError(t, err)

				begun := time.Now()
				var mu sync.Mutex
				at, attempts := map[string]time.Duration{}, 0
				b := newBroker()
				b.answer = func(_ string, msg *message.Message) error {
					mu.Lock()
					defer mu.Unlock()
					if string(msg.Payload) == "retried" {
						if attempts++; attempts <= 5 { // about once a second: it fails alone in its topic
							return errDown
						}
					}
					at[string(msg.Payload)] = time.Since(begun)
					return nil
				}
				run(t, store, b)
				delayed := newMessage("delayed", "")
				delay.Message(delayed, delay.For(wait))
				publish(t, store, "topic", delayed)
				publish(t, store, "another", newMessage("retried", ""))
				for i := range due {
					publish(t, store, "topic", newMessage("before "+strconv.Itoa(i), strconv.Itoa(i)))
				}
				time.Sleep(time.Second)
				store.Advance(step)
				for i := range due {
					publish(t, store, "topic", newMessage("after "+strconv.Itoa(i), strconv.Itoa(i)))
				}
				time.Sleep(time.Minute)
				require.NoError(t, gone.Close())
				time.Sleep(wait + time.Hour)

				require.Empty(t, pendingOf(t, store))
				mu.Lock()
				defer mu.Unlock()
				require.InDelta(t, wait-step, at["delayed"], float64(slack))
				require.Less(t, at["retried"], time.Minute+time.Hour)
				for i := range due {
					before, after := "before "+strconv.Itoa(i), "after "+strconv.Itoa(i)
					require.Contains(t, at, before)
					require.Contains(t, at, after)
					require.LessOrEqual(t, at[before], at[after], "they have one key")
					require.Less(t, at[after], 2*time.Minute, "the other's lease does not outlast it")
				}
			})
		})
	}
}
