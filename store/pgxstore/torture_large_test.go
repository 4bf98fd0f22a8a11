package pgxstore_test

import (
	"context"
	"fmt"
	"runtime"
	"runtime/metrics"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/internal/pgtest"
	"github.com/watermill-outbox/outbox/internal/sqlstore"
	"github.com/watermill-outbox/outbox/store/pgxstore"
)

const (
	largeKeys    = 1000
	largePayload = 500 // bytes
)

// A transaction publishes half a million messages while others come and go, and commits late in that. The messages of
// each key, of the transaction and of the others, land once and in order; the relay holds a fraction of them in memory;
// and while it is at them, others get through, no later than the transaction's own last messages.
func TestRelay_TakesATransactionOfHalfAMillionMessages_ThatCommitsLate(t *testing.T) {
	size := 500_000
	if testing.Short() {
		size = 50_000
	}
	l := newLarge(t)
	stopRelay := l.relay(t)
	defer stopRelay()
	ctx, stopOthers := context.WithCancel(t.Context())
	var others sync.WaitGroup
	others.Go(func() { l.others(ctx) })
	defer others.Wait()
	defer stopOthers()

	committed := time.Now()
	l.insert(t, l.pool, "usual", 0, size/5)
	l.sink.await(t, "usual", size/5, time.Minute)
	usual := time.Since(committed)

	tx, err := l.pool.Begin(t.Context())
	require.NoError(t, err)
	defer tx.Rollback(t.Context()) //nolint:errcheck // it has been committed by then
	for part := range 10 {
		l.insert(t, tx, "large", part*size/10, (part+1)*size/10)
	}
	runtime.GC()
	before := l.sink.heap()
	require.NoError(t, tx.Commit(t.Context()))
	begun := time.Now()
	// Five times as many messages may take five times as long, and that five times on a busy machine.
	l.sink.await(t, "large", size, 5*5*usual)
	took := time.Since(begun)
	stopOthers()
	others.Wait()
	l.sink.await(t, "other", l.sent, 5*5*usual)
	stopRelay()

	l.sink.mu.Lock()
	defer l.sink.mu.Unlock()
	require.Empty(t, l.sink.wrong, "messages out of order, or twice")
	require.NoError(t, l.err)
	require.Zero(t, sqlstore.SweepFinds(l.store))
	grown, whole := l.sink.peak-min(before, l.sink.peak), uint64(size*largePayload)
	t.Logf("%d messages in %v, a fifth of that committed at once in %v; memory grew by %d MB of %d MB; %d other messages, the "+
		"slowest after %v", size, took, usual, grown>>20, whole>>20, l.sent, l.sink.slowest)
	require.True(t, testing.Short() || grown < whole/2, "memory") // a few are not more than what is in flight
	require.Less(t, l.sink.slowest, took+took/2, "others wait for longer than for the transaction")
}

// insert writes messages from number first up to number end.
func (l *large) insert(t *testing.T, db execer, topic string, first, end int) {
	t.Helper()
	_, err := db.Exec(t.Context(), fmt.Sprintf(`
		INSERT INTO %s.outbox_messages (topic, key, payload)
		SELECT $1, $1 || '-' || i %% $2::int, convert_to(rpad((1 + i / $2::int) || ' ', $3::int, 'x'), 'UTF8')
		FROM generate_series($4::int, $5::int - 1) i`, l.schema), topic, largeKeys, largePayload, first, end)
	require.NoError(t, err)
}

// large is an outbox with one relay.
type large struct {
	schema string
	pool   *pgxpool.Pool
	store  *pgxstore.Store
	sink   *sink

	// Of others, until it has ended.
	sent int
	err  error
}

func newLarge(t *testing.T) *large {
	t.Helper()
	l := &large{
		schema: pgtest.Schema(t, pgtest.V15), pool: ways["15"].open(t),
		sink: &sink{next: map[string]int{}, landed: map[string]int{}, changed: make(chan struct{}, 1)},
	}
	var err error
	l.store, err = pgxstore.New(l.pool, pgxstore.WithSchema(l.schema), func(o *sqlstore.Options) { o.SweepInterval = time.Second })
	require.NoError(t, err)
	require.NoError(t, l.store.Migrate(t.Context()))
	t.Cleanup(func() { require.NoError(t, l.store.Close()) })
	return l
}

func (l *large) relay(t *testing.T) (stop func()) {
	t.Helper()
	forwarder, err := outbox.NewForwarder(l.store, l.sink, outbox.WithLogger(watermill.NopLogger{}))
	require.NoError(t, err)
	ended := make(chan error, 1)
	go func() { ended <- forwarder.Run(context.Background()) }() // ends with Close
	return sync.OnceFunc(func() {
		require.NoError(t, forwarder.Close())
		require.NoError(t, <-ended)
	})
}

// others publishes messages of other keys, one in each transaction, until ctx ends.
func (l *large) others(ctx context.Context) {
	for ; ctx.Err() == nil && l.err == nil; l.sent++ {
		msg := message.NewMessage(watermill.NewUUID(), fmt.Appendf(nil, "%d %d", 1+l.sent/10, time.Now().UnixNano()))
		outbox.SetKey(msg, fmt.Sprintf("other-%d", l.sent%10))
		l.err = l.store.InTx(context.WithoutCancel(ctx), func(ctx context.Context, tx pgx.Tx) error {
			return l.store.Publisher(tx).Publish("other", msg)
		})
	}
}

// sink is a broker that goes by the numbers that payloads begin with: of each key they are 1, 2, 3 and so on.
type sink struct {
	changed chan struct{} // of one, after a landing

	mu      sync.Mutex
	next    map[string]int // of each key, how many have landed
	landed  map[string]int // by topic
	wrong   []string
	slowest time.Duration // of those that carry the time when they were sent
	peak    uint64
}

func (s *sink) Close() error { return nil }

func (s *sink) Publish(topic string, msgs ...*message.Message) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, msg := range msgs {
		key, fields := outbox.Key(msg), strings.Fields(string(msg.Payload))
		if s.next[key]++; fields[0] != strconv.Itoa(s.next[key]) && len(s.wrong) < 10 {
			s.wrong = append(s.wrong, fmt.Sprintf("%s: %s instead of %d", key, fields[0], s.next[key]))
		}
		if topic == "other" {
			ns, err := strconv.ParseInt(fields[1], 10, 64)
			if err != nil {
				return err
			}
			s.slowest = max(s.slowest, time.Since(time.Unix(0, ns)))
		}
		if s.landed[topic]++; s.landed[topic]%10_000 == 0 {
			s.peak = max(s.peak, s.heap())
		}
	}
	select {
	case s.changed <- struct{}{}:
	default:
	}
	return nil
}

// heap is what the last garbage collection has left on the heap.
func (s *sink) heap() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

func (s *sink) count(topic string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.landed[topic]
}

func (s *sink) await(t *testing.T, topic string, n int, patience time.Duration) {
	t.Helper()
	watchdog := time.NewTimer(patience)
	defer watchdog.Stop()
	for s.count(topic) < n {
		select {
		case <-s.changed:
		case <-watchdog.C:
			t.Fatalf("of %d %s messages %d have landed in %v", n, topic, s.count(topic), patience)
		}
	}
}
