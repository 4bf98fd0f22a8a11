package pgxstore_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
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
	"github.com/watermill-outbox/outbox/internal/sqlstore"
	"github.com/watermill-outbox/outbox/store/pgxstore"
)

const (
	// shopTTL is short, so that what takes a lease's time does not take the test's.
	shopTTL = time.Second
	// shopPatience is for waits that end much sooner; the sweep, which would find what the reads miss, never comes.
	shopPatience = 30 * time.Second
	shopKeys     = 20
)

// shop is an application whose server gets into trouble. Customers take orders, each in a transaction that counts its
// key's orders up under a row lock and saves the order and its message, and go on whatever becomes of one. Instances
// relay. In the end, whatever has happened, what the tables say is the truth:
//
//	P2  each order that is in them is at the broker
//	P3  what is at the broker is in them, unless the server has lost orders or the test has inserted some
//	P4  of each key, the first deliveries of these orders come in the order of their numbers
//	P6  nothing was counted as a failed attempt, nothing set aside
//
// And nothing is left in the outbox, every Run has gone on until it was stopped, and then returned nil.
type shop struct {
	url   string // may name several servers
	opts  []pgxstore.Option
	pool  *pgxpool.Pool
	store *pgxstore.Store

	mu         sync.Mutex
	changed    chan struct{} // closed at the next change of what is below
	ordered    int           // orders whose commit was confirmed
	refused    int           // those that have failed
	deliveries []shopDelivery
	uuids      map[string][]string // by the message's row id, which may be given again
	claimed    int
	dials      int         // connections that the instances have tried to make
	leases     map[int]int // how many slots each instance holds
	stops      map[int]*shopStop
	queries    int      // that they have made
	looks      int      // of those, the ones for the holders of the sequence
	errors     []string // that they have logged
	wrong      []string

	inside, running   sync.WaitGroup // customers, instances
	sendHome, stopAll context.CancelFunc
}

// shopStop holds up the first message of a number at the broker.
type shopStop struct{ arrived, goOn chan struct{} }

type shopDelivery struct {
	uuid, key string
	number    int
}

const shopTables = `
	CREATE TABLE counters (key text PRIMARY KEY, n int NOT NULL);
	CREATE TABLE orders (key text NOT NULL, n int NOT NULL, uuid text NOT NULL);
	INSERT INTO counters SELECT 'key-' || i, 0 FROM generate_series(1, 20) i`

// newShop makes the tables of a shop at url.
func newShop(t *testing.T, url string, opts ...pgxstore.Option) *shop {
	t.Helper()
	s := &shop{
		url: url, changed: make(chan struct{}), uuids: map[string][]string{},
		leases: map[int]int{}, stops: map[int]*shopStop{},
	}
	s.opts = append([]pgxstore.Option{
		pgxstore.WithLeaseTTL(shopTTL), func(o *sqlstore.Options) { o.SweepInterval = time.Hour },
	}, opts...)
	s.pool = s.connect(t, nil)
	t.Cleanup(func() { s.inside.Wait(); s.running.Wait() })
	s.store = s.open(t, s.pool)
	require.NoError(t, s.store.Migrate(t.Context()))
	_, err := s.pool.Exec(t.Context(), shopTables)
	require.NoError(t, err)
	return s
}

func (s *shop) connect(t *testing.T, dialing func()) *pgxpool.Pool {
	t.Helper()
	config, err := pgxpool.ParseConfig(s.url)
	require.NoError(t, err)
	config.MaxConns = 20
	if dialing != nil {
		config.BeforeConnect = func(context.Context, *pgx.ConnConfig) error { dialing(); return nil }
		config.ConnConfig.Tracer = shopTracer{s}
	}
	pool, err := pgxpool.NewWithConfig(context.Background(), config)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return pool
}

func (s *shop) open(t *testing.T, pool *pgxpool.Pool) *pgxstore.Store {
	t.Helper()
	store, err := pgxstore.New(pool, s.opts...)
	require.NoError(t, err)
	return store
}

// change changes what mu guards, and tells those that await something.
func (s *shop) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	close(s.changed)
	s.changed = make(chan struct{})
}

// await waits until a condition on what mu guards holds.
func (s *shop) await(t *testing.T, what string, done func() bool) {
	t.Helper()
	timeout := time.After(shopPatience)
	for {
		s.mu.Lock()
		ok, changed := done(), s.changed
		s.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-timeout:
			s.tell(t)
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// awaitOrders waits for n more orders.
func (s *shop) awaitOrders(t *testing.T, n int) {
	t.Helper()
	s.mu.Lock()
	n += s.ordered
	s.mu.Unlock()
	s.await(t, "orders", func() bool { return s.ordered >= n })
}

// openDoors lets customers in.
func (s *shop) openDoors(t *testing.T, customers int) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context()) // which ends before the clean-ups
	s.sendHome = cancel
	for range customers {
		s.inside.Go(func() {
			for ctx.Err() == nil {
				err := s.order(ctx, "key-"+strconv.Itoa(1+rand.IntN(shopKeys)))
				s.change(func() {
					if err == nil {
						s.ordered++
					} else {
						s.refused++
					}
				})
				if err != nil {
					select { // as long as a customer thinks
					case <-ctx.Done():
					case <-time.After(10 * time.Millisecond):
					}
				}
			}
		})
	}
}

// closeDoors waits until all customers have left.
func (s *shop) closeDoors() {
	s.sendHome()
	s.inside.Wait()
}

func (s *shop) order(ctx context.Context, key string) error {
	return s.store.InTx(ctx, func(ctx context.Context, tx pgx.Tx) error { return s.orderIn(ctx, tx, key) })
}

func (s *shop) orderIn(ctx context.Context, tx pgx.Tx, key string) error {
	var n int
	err := tx.QueryRow(ctx, "UPDATE counters SET n = n + 1 WHERE key = $1 RETURNING n", key).Scan(&n)
	if err != nil {
		return err
	}
	msg := message.NewMessage(watermill.NewUUID(), []byte(strconv.Itoa(n)))
	outbox.SetKey(msg, key)
	if _, err := tx.Exec(ctx, "INSERT INTO orders VALUES ($1, $2, $3)", key, n, msg.UUID); err != nil {
		return err
	}
	return s.store.Publisher(tx).Publish("orders", msg)
}

// insertOrders has one transaction take n orders of each of some keys, by SQL alone. It works without the shop's pool.
func insertOrders(keys, n int) string {
	return fmt.Sprintf(`
		WITH taken AS (
			UPDATE counters SET n = n + %[2]d WHERE substr(key, 5)::int <= %[1]d RETURNING key, n - %[2]d AS before
		), made AS (
			INSERT INTO orders SELECT key, before + i, gen_random_uuid()::text FROM taken, generate_series(1, %[2]d) i RETURNING *
		)
		INSERT INTO outbox_messages (uuid, topic, key, payload)
		SELECT uuid, 'orders', key, convert_to(n::text, 'UTF8') FROM made ORDER BY n, key`, keys, n)
}

// relay starts n instances.
func (s *shop) relay(t *testing.T, n int, opts ...outbox.Option) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	s.stopAll = cancel
	for i := range n {
		store := s.open(t, s.connect(t, func() { s.change(func() { s.dials++ }) }))
		f, err := outbox.NewForwarder(store, s, append([]outbox.Option{outbox.OptionFunc(func(c *outbox.Config) {
			c.Logger, c.PollInterval, c.Concurrency = shopLog{shop: s}, 50*time.Millisecond, 16
			c.Observer = outbox.ObserverFunc(func(_ context.Context, e outbox.Event) { s.observe(i, e) })
		})}, opts...)...)
		require.NoError(t, err)
		s.running.Go(func() {
			err := f.Run(ctx)
			if ctx.Err() == nil || err != nil {
				s.failf("Run has returned %v", err)
			}
		})
	}
}

func (s *shop) failf(format string, args ...any) {
	s.change(func() { s.wrong = append(s.wrong, fmt.Sprintf(format, args...)) })
}

// Publish is the broker.
func (s *shop) Publish(_ string, msgs ...*message.Message) error {
	number, err := strconv.Atoi(string(msgs[0].Payload))
	if err != nil {
		return err
	}
	s.mu.Lock()
	stop := s.stops[number]
	delete(s.stops, number)
	s.mu.Unlock()
	if stop != nil {
		close(stop.arrived)
		<-stop.goOn
	}
	time.Sleep(time.Duration(rand.IntN(1000)) * time.Microsecond) // so that some are on their way at any time
	s.change(func() {
		s.deliveries = append(s.deliveries, shopDelivery{msgs[0].UUID, outbox.Key(msgs[0]), number})
	})
	return nil
}

func (s *shop) stop(number int) *shopStop {
	stop := &shopStop{make(chan struct{}), make(chan struct{})}
	s.change(func() { s.stops[number] = stop })
	return stop
}

func (s *shop) Close() error { return nil }

func (s *shop) observe(instance int, event outbox.Event) {
	switch e := event.(type) {
	case outbox.ClaimedEvent:
		s.change(func() {
			for _, m := range e.Messages {
				if s.claimed++; m.Retries != 0 {
					s.wrong = append(s.wrong, fmt.Sprintf("%s has %d retries", m.UUID, m.Retries))
				}
				row, _, _ := strings.Cut(m.ID, ".")
				if !slices.Contains(s.uuids[row], m.UUID) {
					s.uuids[row] = append(s.uuids[row], m.UUID)
				}
			}
		})
	case outbox.LeaseGainedEvent:
		s.change(func() { s.leases[instance] += len(e.Slots) })
	case outbox.LeaseLostEvent:
		s.change(func() { s.leases[instance] -= len(e.Slots) })
	case outbox.FailedEvent:
		s.failf("%s has failed: %v", e.Message.UUID, e.Err)
	case outbox.SetAsideEvent:
		s.failf("%s was set aside: %v", e.Message.UUID, e.Err)
	}
}

// lease returns how many slots are held. The caller holds mu.
func (s *shop) lease() (held int) {
	for _, n := range s.leases {
		held += n
	}
	return held
}

// finish sends the customers home, waits until the outbox is empty, stops the instances, and checks what is at the broker.
// lost says that the server has lost orders, or the test has removed some.
func (s *shop) finish(t *testing.T, lost bool) {
	t.Helper()
	defer s.tell(t)
	if s.sendHome != nil {
		s.closeDoors()
	}
	s.awaitEmpty(t)
	s.awaitIdle(t)
	s.stopAll()
	s.running.Wait()
	orders := s.orders(t)
	s.mu.Lock()
	defer s.mu.Unlock()
	require.Empty(t, s.wrong)
	first, again := map[string]int{}, 0
	for i, d := range s.deliveries {
		if _, known := first[d.uuid]; known {
			again++
		} else {
			first[d.uuid] = i
		}
	}
	last := map[string]int{} // where the last order of a key is
	for _, o := range orders {
		at, delivered := first[o.uuid]
		require.True(t, delivered, "%v was lost", o)
		require.Equal(t, o, s.deliveries[at])
		if before, ok := last[o.key]; ok {
			require.Less(t, before, at, "%v was delivered before %v", o, s.deliveries[before])
		}
		last[o.key] = at
		delete(first, o.uuid)
	}
	if !lost {
		require.Empty(t, first, "delivered, and not in the tables")
	}
	t.Logf("%d orders, %d refused; %d deliveries, %d of them again, %d of orders that the tables do not have",
		len(orders), s.refused, len(s.deliveries), again, len(first))
}

// awaitEmpty waits until nothing is pending, also while the server comes and goes.
func (s *shop) awaitEmpty(t *testing.T) {
	t.Helper()
	deadline := time.Now().Add(shopPatience)
	for {
		left, err := column[string](t.Context(), s.pool,
			"SELECT format('%s of %s, %s retries', id, key, retries) FROM outbox_messages ORDER BY id LIMIT 10")
		if err == nil && len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			s.tell(t)
			t.Fatalf("these are stuck: %q %v", left, err)
		}
		time.Sleep(20 * time.Millisecond) // there is no signal for an empty table
	}
}

// orders returns what the tables have, in the order in which each key's are to be delivered.
func (s *shop) orders(t *testing.T) (orders []shopDelivery) {
	t.Helper()
	rows, err := s.pool.Query(t.Context(), "SELECT uuid, key, n FROM orders ORDER BY key, n")
	require.NoError(t, err)
	orders, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (o shopDelivery, err error) {
		return o, row.Scan(&o.uuid, &o.key, &o.number)
	})
	require.NoError(t, err)
	return orders
}

// givenAgain returns how many row ids were those of several messages.
func (s *shop) givenAgain() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, uuids := range s.uuids {
		if len(uuids) > 1 {
			n++
		}
	}
	return n
}

// logged returns the errors that were logged.
func (s *shop) logged() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.errors)
}

// shopLog keeps what an operator is to see.
type shopLog struct {
	watermill.NopLogger
	shop *shop
}

func (l shopLog) Error(msg string, err error, _ watermill.LogFields) {
	l.shop.change(func() { l.shop.errors = append(l.shop.errors, fmt.Sprintf("%s: %v", msg, err)) })
}

func (l shopLog) With(watermill.LogFields) watermill.LoggerAdapter { return l }

// shopTracer counts statements.
type shopTracer struct{ *shop }

func (s shopTracer) count(sql string) {
	s.change(func() {
		s.queries++
		if strings.Contains(sql, "pg_locks") {
			s.looks++
		}
	})
}

func (s shopTracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, query pgx.TraceQueryStartData) context.Context {
	s.count(query.SQL)
	return ctx
}

func (s shopTracer) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func (s shopTracer) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	return ctx
}

func (s shopTracer) TraceBatchQuery(_ context.Context, _ *pgx.Conn, query pgx.TraceBatchQueryData) {
	s.count(query.SQL)
}

func (s shopTracer) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData) {}

// awaitIdle waits until the instances, which have nothing to do, do little: at their poll interval they make about five
// statements each.
func (s *shop) awaitIdle(t *testing.T) {
	t.Helper()
	deadline := time.Now().Add(shopPatience)
	for before, n := 0, 1_000; n > 200; before += n {
		if time.Now().After(deadline) {
			t.Fatalf("%d statements in 250 ms, and nothing to do", n)
		}
		time.Sleep(250 * time.Millisecond) // to count what is done meanwhile
		s.mu.Lock()
		n = s.queries - before
		s.mu.Unlock()
	}
}

// tell logs what an operator would have read, each line once.
func (s *shop) tell(t *testing.T) {
	t.Helper()
	counts := map[string]int{}
	for _, line := range s.logged() {
		counts[line]++
	}
	for line, n := range counts {
		t.Logf("%d × %s", n, line)
	}
}
