package sqlite_test

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/store/sqlite"
)

// A process that writes, relays and consumes is killed at random moments, again and again. When the last one is done:
//
//	P1, P2  every row of orders and effects, whose transactions committed, has its message in the broker
//	P3      every message in the broker has such a row, with its key and number
//	P4      of each key, over both topics, the first deliveries are in the order of the numbers, which is that of commits
//	P5      every order has one effect (and by P2 and P3 every effect the one message that its handler returned)
//
// OUTBOX_CRASH_KILLS sets how many there are, OUTBOX_CRASH_SEED when they come.
func TestStore_KeepsItsPromises_HoweverOftenAProcessIsKilled(t *testing.T) {
	if dir := os.Getenv("OUTBOX_TEST_SHOP"); dir != "" {
		shopForTest(dir)
	}
	kills := 200
	if testing.Short() {
		kills = 30
	}
	kills = int(number(t, "OUTBOX_CRASH_KILLS", uint64(kills)))
	seed := number(t, "OUTBOX_CRASH_SEED", rand.Uint64())
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("to kill at the same moments again: OUTBOX_CRASH_SEED=%d OUTBOX_CRASH_KILLS=%d", seed, kills)
		}
	})
	dir := t.TempDir()
	db := open(t, shopDatabase(dir))
	require.NoError(t, newStore(t, db).Migrate(t.Context()))
	_, err := db.Exec(`CREATE TABLE orders (number INTEGER NOT NULL, uuid TEXT NOT NULL, key TEXT NOT NULL);
		CREATE TABLE effects (number INTEGER NOT NULL, uuid TEXT NOT NULL, key TEXT NOT NULL, caused_by TEXT NOT NULL);
		CREATE TABLE numbers (last INTEGER NOT NULL); INSERT INTO numbers VALUES (0);
		CREATE TABLE consumed (upto INTEGER NOT NULL); INSERT INTO consumed VALUES (0)`)
	require.NoError(t, err)
	require.NoError(t, db.Close()) // so that a new process is the first to see what the killed one has left

	k := killer{dir: dir, random: rand.New(rand.NewPCG(seed, 0)), told: map[byte]int{}}
	for range kills {
		k.killOne(t)
	}
	finishShop(t, dir)
	deliveries, torn := readLog(t, dir)
	again := checkShop(t, dir, deliveries)
	t.Logf("%d kills: of the relaying process %d, with messages pending %d, in a broker's write %d; %d transactions, "+
		"%d rolled back, %d orders billed; %d deliveries, of them %d again", kills, k.leading, k.pending, torn,
		k.told[ordered], k.told[rolledBack], k.told[billed], len(deliveries), again)
	require.LessOrEqual(t, torn, kills)
	if kills < 30 {
		return // too few to have hit everything
	}
	require.Greater(t, k.leading, kills/4, "kills that hit the process that relays")
	require.Greater(t, k.pending, kills/4, "kills that left something to do")
	require.Positive(t, again, "kills between the broker's acknowledgement and its mark")
	for _, what := range []byte{ordered, rolledBack, acknowledged, billed} {
		require.Greater(t, k.told[what], kills/8, "%c", what)
	}
}

func number(t *testing.T, variable string, otherwise uint64) uint64 {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	require.NoError(t, err, variable)
	return n
}

// What a shop says that it has just done: its signs of life.
const (
	ordered      = 'o'
	rolledBack   = 'r'
	acknowledged = 'a'
	billed       = 'b'
)

// killer runs shops and kills them.
type killer struct {
	dir    string
	random *rand.Rand
	told   map[byte]int // how often shops have said what

	leading int // how many of the killed held the lease
	pending int // how many left messages in the outbox
}

// killOne starts a shop and kills it a little after it has done something for the n-th time. That takes as long as it
// takes, on a slow machine too; what the shop is at in that moment is anybody's guess.
func (k *killer) killOne(t *testing.T) {
	t.Helper()
	child := exec.Command(os.Args[0], "-test.run=^TestStore_KeepsItsPromises_HoweverOftenAProcessIsKilled$")
	child.Env = append(os.Environ(), "OUTBOX_TEST_SHOP="+k.dir, "GORACE=halt_on_error=1")
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe() // nothing outlives this process: who writes to a broken pipe dies
	require.NoError(t, err)
	require.NoError(t, child.Start())
	watchdog := time.AfterFunc(time.Minute, func() { _ = child.Process.Kill() })
	defer watchdog.Stop()
	defer child.Process.Kill() //nolint:errcheck // where the test has failed before

	said := bufio.NewReader(out)
	what := []byte{ordered, acknowledged, billed}[k.random.IntN(3)]
	for n := k.random.IntN(10); n >= 0; {
		b, err := said.ReadByte()
		require.NoError(t, err, "the shop has ended by itself, or does nothing")
		k.told[b]++
		if b == what {
			n--
		}
	}
	if k.random.IntN(2) == 0 {
		time.Sleep(time.Duration(k.random.IntN(4000)) * time.Microsecond)
	}
	require.NoError(t, child.Process.Kill())
	var end *exec.ExitError
	require.ErrorAs(t, child.Wait(), &end)
	require.Equal(t, syscall.SIGKILL, end.Sys().(syscall.WaitStatus).Signal(), "it was not killed but has ended: %v", end)
	k.lookAround(t, child.Process.Pid)
}

// lookAround sees what the killed process has left. Most times it makes the next one not wait for its lease to run out;
// the other times it leaves the file alone, so that a shop is the one to recover it.
func (k *killer) lookAround(t *testing.T, pid int) {
	t.Helper()
	if k.random.IntN(8) == 0 {
		return
	}
	db, err := sqlite.Open(shopDatabase(k.dir))
	require.NoError(t, err)
	var leading, pending int
	require.NoError(t, db.QueryRow(`SELECT owner LIKE '%/' || ? || '/%', EXISTS (SELECT * FROM outbox_messages)
		FROM outbox_slots`, pid).Scan(&leading, &pending))
	k.leading += leading
	k.pending += pending
	_, err = db.Exec("UPDATE outbox_slots SET expires_at = 0")
	require.NoError(t, err)
	require.NoError(t, db.Close())
}

// delivery is a message in the broker: a line of its log.
type delivery struct{ topic, uuid, key, number string }

// lineEnd tells a whole line from a torn one.
const lineEnd = "."

func (d delivery) line() []byte {
	return fmt.Appendf(nil, "%s %s %s %s %s\n", d.topic, d.uuid, d.key, d.number, lineEnd)
}

// parseLine returns ok false for what is left of a line whose writer was killed in the middle of it.
func parseLine(line string) (d delivery, ok bool) {
	f := strings.Split(strings.TrimSuffix(line, "\n"), " ")
	if len(f) != 5 || f[4] != lineEnd {
		return delivery{}, false
	}
	return delivery{f[0], f[1], f[2], f[3]}, true
}

func (d delivery) message() *message.Message {
	msg := message.NewMessage(d.uuid, []byte(d.number))
	outbox.SetKey(msg, d.key)
	return msg
}

func readLog(t *testing.T, dir string) (deliveries []delivery, torn int) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "broker.log"))
	require.NoError(t, err)
	for line := range strings.Lines(string(text)) {
		if d, ok := parseLine(line); ok {
			deliveries = append(deliveries, d)
		} else if line != "\n" {
			torn++
		}
	}
	return deliveries, torn
}

// checkShop checks what the test promises, and returns how many messages were delivered more than once.
func checkShop(t *testing.T, dir string, deliveries []delivery) (again int) {
	t.Helper()
	db := open(t, shopDatabase(dir))
	committed := map[string]delivery{}
	lines, err := column[string](t.Context(), db, `SELECT 'orders ' || uuid || ' ' || key || ' ' || number || ' .' FROM orders
		UNION ALL SELECT 'bills ' || uuid || ' ' || key || ' ' || number || ' .' FROM effects`)
	require.NoError(t, err)
	for _, line := range lines {
		d, ok := parseLine(line)
		require.True(t, ok, line)
		committed[d.uuid] = d
	}

	delivered, last := map[string]bool{}, map[string]int{}
	for _, d := range deliveries {
		require.Equal(t, committed[d.uuid], d, "a message that nobody has committed")
		if delivered[d.uuid] {
			again++
			continue
		}
		delivered[d.uuid] = true
		n, err := strconv.Atoi(d.number)
		require.NoError(t, err)
		if d.key != "" {
			require.Greater(t, n, last[d.key], "key %s is out of order: %v", d.key, d)
			last[d.key] = n
		}
	}
	for uuid, d := range committed {
		require.True(t, delivered[uuid], "it was committed and is lost: %v", d)
	}

	for what, query := range map[string]string{
		"orders without an effect":      "SELECT uuid FROM orders WHERE uuid NOT IN (SELECT caused_by FROM effects)",
		"effects without an order":      "SELECT uuid FROM effects WHERE caused_by NOT IN (SELECT uuid FROM orders)",
		"orders with several effects":   "SELECT caused_by FROM effects GROUP BY caused_by HAVING count(*) > 1",
		"messages that were set aside":  "SELECT uuid FROM outbox_archive",
		"messages that are still there": "SELECT uuid FROM outbox_messages",
	} {
		wrong, err := column[string](t.Context(), db, query+" LIMIT 5")
		require.NoError(t, err)
		require.Empty(t, wrong, what)
	}
	return again
}

// shop takes orders and bills them. Its database and the log of its broker outlive it.
type shop struct {
	db        *sql.DB
	store     *sqlite.Store
	publisher *outbox.Publisher
	forwarder *outbox.Forwarder
	router    *message.Router
	broker    *logBroker
	tell      func(what byte)
	consumed  atomic.Int64 // how much of the log has been handled, in bytes
}

// Its writers are many, and a machine may be slow.
func shopDatabase(dir string) string {
	return filepath.Join(dir, "shop.db?_synchronous=NORMAL&_busy_timeout=30000")
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func newShop(dir string, tell func(byte)) *shop {
	db, silent := must(sqlite.Open(shopDatabase(dir))), outbox.WithLogger(watermill.NopLogger{})
	store := must(sqlite.New(db, sqlite.WithLeaseTTL(300*time.Millisecond)))
	s := &shop{
		db: db, store: store, tell: tell,
		publisher: must(outbox.NewPublisher(store)),
		router:    must(message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})),
		broker:    newLogBroker(filepath.Join(dir, "broker.log"), tell),
	}
	s.forwarder = must(outbox.NewForwarder(store, s.broker, silent, outbox.WithPollInterval(10*time.Millisecond)))
	dedup := must(outbox.NewDeduplicator(store.Processed(), "billing", silent))
	s.router.AddHandler("bill", "orders", s, "bills", s.publisher, s.bill).AddMiddleware(dedup.Middleware)
	return s
}

// shopForTest is the body of another process, which is killed.
func shopForTest(dir string) {
	s := newShop(dir, func(what byte) { must(os.Stdout.Write([]byte{what})) })
	for i := range 3 {
		go s.takeOrders(i)
	}
	go func() { panic(s.router.Run(context.Background())) }()
	panic(s.forwarder.Run(context.Background()))
}

var errChangedMyMind = errors.New("the customer has changed their mind")

// takeOrders takes some orders in each transaction, and rolls every fourth back.
func (s *shop) takeOrders(begin int) {
	for i := begin; ; i++ {
		err := s.store.InTx(context.Background(), func(ctx context.Context, tx *sql.Tx) error {
			for j := range 1 + i%3 {
				key := []string{"a", "b", "c", "d", ""}[(i+j)%5]
				msg, err := s.write(ctx, "INSERT INTO orders (number, uuid, key) VALUES (?, ?, ?)", key)
				if err != nil {
					return err
				}
				msg.SetContext(ctx)
				if err := s.publisher.Publish("orders", msg); err != nil {
					return err
				}
			}
			if i%4 == 3 {
				return errChangedMyMind
			}
			return nil
		})
		switch {
		case err == nil:
			s.tell(ordered)
		case errors.Is(err, errChangedMyMind):
			s.tell(rolledBack)
		default:
			panic(err)
		}
		time.Sleep(rand.N(20 * time.Millisecond)) // what a customer needs
	}
}

// write inserts a row in the transaction of ctx and returns the message about it. Its number is the next one, which a
// transaction that rolls back leaves to another.
func (s *shop) write(ctx context.Context, insert, key string, more ...any) (*message.Message, error) {
	tx, ok := s.store.TxFromContext(ctx)
	if !ok {
		return nil, errors.New("the context carries no transaction")
	}
	d := delivery{uuid: watermill.NewUUID(), key: key}
	if err := tx.QueryRow("UPDATE numbers SET last = last + 1 RETURNING last").Scan(&d.number); err != nil {
		return nil, err
	}
	_, err := tx.Exec(insert, append([]any{d.number, d.uuid, key}, more...)...)
	return d.message(), err
}

// bill is the handler of orders. Some fail after they have written.
func (s *shop) bill(msg *message.Message) ([]*message.Message, error) {
	bill, err := s.write(msg.Context(), "INSERT INTO effects (number, uuid, key, caused_by) VALUES (?, ?, ?, ?)",
		outbox.Key(msg), msg.UUID)
	if err != nil {
		return nil, err
	}
	if rand.IntN(10) == 0 {
		return nil, errors.New("the printer has no paper")
	}
	s.tell(billed)
	return []*message.Message{bill}, nil
}

// logBroker is a broker whose messages are the lines of a file.
type logBroker struct {
	path  string
	tell  func(byte)
	grown chan struct{} // capacity 1

	mu   sync.Mutex
	file *os.File
}

func newLogBroker(path string, tell func(byte)) *logBroker {
	file := must(os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600))
	must(file.WriteString("\n")) // ends the line that a killed process may have left torn
	return &logBroker{path: path, tell: tell, file: file, grown: make(chan struct{}, 1)}
}

// Publish writes each line in two steps, with time for a kill in between.
func (b *logBroker) Publish(topic string, msgs ...*message.Message) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, msg := range msgs {
		line := delivery{topic, msg.UUID, outbox.Key(msg), string(msg.Payload)}.line()
		_, err := b.file.Write(line[:len(line)/2])
		time.Sleep(rand.N(100 * time.Microsecond))
		if _, secondErr := b.file.Write(line[len(line)/2:]); errors.Join(err, secondErr) != nil {
			return errors.Join(err, secondErr)
		}
		b.tell(acknowledged)
		select {
		case b.grown <- struct{}{}:
		default:
		}
	}
	return nil
}

func (b *logBroker) Close() error { return nil }

// Subscribe makes the shop a subscriber of its broker: from a little before where the last process was killed. The
// channel ends with ctx.
func (s *shop) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	s.consumed.Store(must(column[int64](ctx, s.db, "SELECT upto FROM consumed"))[0])
	file := must(os.Open(s.broker.path))
	deliveries := make(chan *message.Message)
	go func() {
		defer close(deliveries)
		defer file.Close() //nolint:errcheck // it was read only
		s.deliver(ctx, topic, file, deliveries)
	}()
	return deliveries, nil
}

func (s *shop) Close() error { return nil }

// deliver delivers the lines one after another, every fourth twice at once, until ctx ends.
func (s *shop) deliver(ctx context.Context, topic string, file *os.File, to chan<- *message.Message) {
	for i := 0; ; {
		text := must(io.ReadAll(io.NewSectionReader(file, s.consumed.Load(), math.MaxInt64/2)))
		for line := range bytes.Lines(text) {
			if d, ok := parseLine(string(line)); ok && d.topic == topic {
				i++
				var copies sync.WaitGroup
				for range 1 + i%4/3 {
					copies.Go(func() { deliverOnce(ctx, d, to) })
				}
				copies.Wait()
			}
			if ctx.Err() != nil {
				return
			}
			if line[len(line)-1] != '\n' {
				break // it is being written
			}
			s.consumed.Add(int64(len(line)))
			if i%8 == 7 {
				must(s.db.Exec("UPDATE consumed SET upto = ?", s.consumed.Load()))
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-s.broker.grown:
		}
	}
}

// deliverOnce delivers a message until it is acknowledged.
func deliverOnce(ctx context.Context, d delivery, to chan<- *message.Message) {
	for {
		msg := d.message()
		select {
		case to <- msg:
		case <-ctx.Done():
			return
		}
		select {
		case <-msg.Acked():
			return
		case <-msg.Nacked():
		case <-ctx.Done():
			return
		}
	}
}

// finishShop has everything published and billed, by a shop that takes no more orders and is not killed.
func finishShop(t *testing.T, dir string) {
	t.Helper()
	s := newShop(dir, func(byte) {})
	_, err := s.db.Exec("UPDATE outbox_slots SET expires_at = 0")
	require.NoError(t, err)
	ended := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { ended <- s.router.Run(ctx) }()
	require.Eventually(t, func() bool {
		_, err := s.forwarder.Drain(ctx)
		require.NoError(t, err)
		log, err := os.Stat(s.broker.path)
		require.NoError(t, err)
		if s.consumed.Load() < log.Size() {
			return false
		}
		stats, err := s.store.Stats(ctx)
		require.NoError(t, err)
		return stats.Pending == 0
	}, 10*time.Minute, time.Millisecond)
	cancel()
	require.NoError(t, <-ended)
	require.NoError(t, s.store.Close())
	require.NoError(t, s.broker.file.Close())
	require.NoError(t, s.db.Close())
}
