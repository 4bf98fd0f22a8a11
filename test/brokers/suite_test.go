package brokers_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
)

// cases is the suite: what every broker must show with the settings that docs/brokers.md recommends.
var cases = []struct {
	name string
	test func(t *testing.T, w *world)
	of   func(b broker) broker // what of the broker it is about, if not all
}{
	{"delivers all in order of their keys and as they were", testDelivers, nil},
	{"an outage loses nothing, keeps order and uses up no attempt", testOutage, inOnePart},
	{"shutdowns make no duplicates", testShutdowns, nil},
	{"a message that it refuses is set aside, others go on", testRefused, nil},
}

func TestBrokers(t *testing.T) {
	t.Parallel()
	for name, newBroker := range brokers {
		if testing.Short() && name != "Kafka" && name != "Go channels" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, c := range cases {
				t.Run(c.name, func(t *testing.T) {
					b := newBroker(t)
					if c.of != nil {
						b = c.of(b)
					}
					c.test(t, newWorld(t, b))
				})
			}
		})
	}
}

// publishing has some writers publish n messages each. Wait waits for all of them.
func (w *world) publishing(t *testing.T, n int, pause time.Duration) (writers []*writer, wait func()) {
	var all sync.WaitGroup
	for i := range 8 {
		wr := &writer{number: i}
		writers = append(writers, wr)
		all.Go(func() {
			for range n {
				if err := w.publish(context.Background(), wr, 1); err != nil {
					t.Error(err) // and not require, in a goroutine
					return
				}
				time.Sleep(pause)
			}
		})
	}
	t.Cleanup(all.Wait)
	return writers, all.Wait
}

func testDelivers(t *testing.T, w *world) {
	c := w.consume(t)
	w.forward(t)
	writers, wait := w.publishing(t, 100, 0)
	wait()
	require.Zero(t, requireDelivered(t, writers, c.await(t, 800)), "duplicates")
	require.Zero(t, w.retries(t))
}

func testOutage(t *testing.T, w *world) {
	if _, isLocal := w.broker.(channels); isLocal {
		t.Skip("Go channels have no network that could fail")
	}
	c := w.consume(t)
	w.forward(t)
	writers, wait := w.publishing(t, 100, 20*time.Millisecond) // for two seconds
	c.await(t, 50)
	w.net.Cut()
	wait()
	time.Sleep(2 * time.Second) // which is longer than most clients try by themselves
	require.Less(t, c.count(), 800)
	w.net.Mend()
	duplicates := requireDelivered(t, writers, c.await(t, 800))
	require.Zero(t, w.retries(t))
	t.Logf("%d duplicates", duplicates)
}

func testShutdowns(t *testing.T, w *world) {
	c := w.consume(t)
	stop := w.forward(t)
	writers, wait := w.publishing(t, 100, 10*time.Millisecond)
	for i := 1; i <= 4; i++ {
		c.await(t, 100*i)
		stop()
		stop = w.forward(t)
	}
	wait()
	require.Zero(t, requireDelivered(t, writers, c.await(t, 800)), "duplicates")
	require.Zero(t, w.retries(t))
}

func testRefused(t *testing.T, w *world) {
	refused := message.NewMessage(watermill.NewUUID(), []byte("refused"))
	if !w.broker.Refuse(refused) {
		t.Skip("it takes every message that the outbox does")
	}
	c := w.consume(t)
	w.forward(t, outbox.WithRetryBackoff(10*time.Millisecond, 50*time.Millisecond), outbox.WithMaxRetries(5))
	writers, wait := w.publishing(t, 100, 0)
	outbox.SetKey(refused, "key-0-0")
	require.NoError(t, w.inTx(t.Context(), refused, nil))
	wait()
	requireDelivered(t, writers, c.await(t, 800))

	var failed []outbox.Message
	require.Eventually(t, func() bool {
		var err error
		failed, err = w.store.ListFailed(t.Context(), "", 10)
		require.NoError(t, err)
		return len(failed) > 0
	}, patience, 20*time.Millisecond)
	require.Len(t, failed, 1)
	require.Equal(t, refused.UUID, failed[0].UUID)
	t.Logf("after %d attempts: %s", failed[0].Retries, failed[0].LastError)
	if w.broker.TellsWhatIsPermanent() {
		require.Equal(t, 1, failed[0].Retries)
	}
}
