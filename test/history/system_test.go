package history_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/internal/pgtest"
	"github.com/watermill-outbox/outbox/store/pgxstore"
	"github.com/watermill-outbox/outbox/test/history"
)

const (
	producers   = 4
	consumers   = 4
	aggregates  = 20
	ttl         = 300 * time.Millisecond
	concurrency = 4
	// patience is how long nothing may land before the rest counts as lost, and longPatience that where nothing is to be lost:
	// the machine may be busy.
	patience, longPatience = 2 * time.Second, 15 * time.Second

	inputs, outputs, group = "inputs", "outputs", "billing"
)

// variant is the system, or one that is broken in one way. A nil field is what the system does.
type variant struct {
	// transact locks an aggregate, publishes messages of it and commits.
	transact func(p *producer, aggregate int) error
	// store is what a relay works with.
	store func(s *system, of *pgxstore.Store) outbox.Store
	// deliver hands a message to the consumer, which fails now and then.
	deliver func(c *consumer, msg *message.Message) error
}

// system is an application with an outbox on a real PostgreSQL, and a broker and faults of its own.
type system struct {
	variant
	patience time.Duration
	schema   string
	pool     *pgxpool.Pool
	store    *pgxstore.Store
	broker   *broker
	folder   string // of the records

	relays   int
	crashed  sync.WaitGroup // relays
	produced atomic.Bool    // all producers have ended
}

func newSystem(t *testing.T, v variant) *system {
	t.Helper()
	s := &system{
		variant: v, patience: patience, schema: pgtest.Schema(t, pgtest.V15), broker: newBroker(), folder: t.TempDir(),
	}
	config, err := pgxpool.ParseConfig(pgtest.V15.URL())
	require.NoError(t, err)
	config.MaxConns = producers + consumers
	config.ConnConfig.RuntimeParams["search_path"] = s.schema
	s.pool, err = pgxpool.NewWithConfig(t.Context(), config)
	require.NoError(t, err)
	t.Cleanup(s.pool.Close)
	s.store, err = pgxstore.New(s.pool, pgxstore.WithSchema(s.schema))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.store.Close()) })
	require.NoError(t, s.store.Migrate(t.Context()))
	_, err = s.pool.Exec(t.Context(), fmt.Sprintf(`
		CREATE TABLE aggregates (id bigint PRIMARY KEY, version bigint NOT NULL DEFAULT 0);
		INSERT INTO aggregates (id) SELECT generate_series(1, %d);
		CREATE TABLE sent (id text NOT NULL, key text NOT NULL, number bigint NOT NULL);
		CREATE TABLE effects (input text NOT NULL, output text NOT NULL)`, aggregates))
	require.NoError(t, err)
	return s
}

func (s *system) record(t *testing.T, process string) *history.Recorder {
	t.Helper()
	r, err := history.Record(s.folder, process)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.Close()) })
	return r
}

// broker keeps what has landed, in order.
type broker struct {
	mu       sync.Mutex
	landings []history.Landing
	moved    time.Time
}

func newBroker() *broker { return &broker{moved: time.Now()} }

func (b *broker) land(topic string, msg *message.Message) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := int64(len(b.landings))
	b.landings = append(b.landings, history.Landing{ID: msg.UUID, Topic: topic, Offset: n, Time: n})
	b.moved = time.Now()
}

func (b *broker) landed() []history.Landing {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clip(b.landings)
}

func (b *broker) idleSince() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.moved
}

// producer is a process that changes aggregates.
type producer struct {
	*system
	name     string
	recorder *history.Recorder
	random   *rand.Rand
	begun    int
}

var errCrash = errors.New("the process was killed here")

func (p *producer) run(ctx context.Context) error {
	transact := p.transact
	if transact == nil {
		transact = (*producer).publishWithin
	}
	for ctx.Err() == nil {
		p.begun++
		if err := transact(p, 1+p.random.IntN(aggregates)); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

func (p *producer) tx() string { return fmt.Sprintf("%s-%d", p.name, p.begun) }

// change begins a transaction that raises an aggregate's version by the number of messages, which it returns.
func (p *producer) change(ctx context.Context, aggregate int) (pgx.Tx, []history.Message, error) {
	tx, err := p.pool.Begin(ctx)
	if err != nil {
		return nil, nil, err
	}
	n := 1 + p.random.IntN(3)
	var version int64
	err = tx.QueryRow(ctx, "UPDATE aggregates SET version = version + $2 WHERE id = $1 RETURNING version - $2", aggregate, n).Scan(&version)
	msgs := make([]history.Message, n)
	for i := range msgs {
		msgs[i] = history.Message{
			ID: fmt.Sprintf("%s-%d", p.tx(), i), Key: fmt.Sprintf("aggregate-%d", aggregate), Number: version + int64(i) + 1,
		}
		if err == nil {
			err = p.note(ctx, tx, msgs[i])
		}
	}
	return tx, msgs, err
}

// note writes down that a transaction publishes a message.
func (s *system) note(ctx context.Context, tx pgx.Tx, m history.Message) error {
	_, err := tx.Exec(ctx, "INSERT INTO sent (id, key, number) VALUES ($1, $2, $3)", m.ID, m.Key, m.Number)
	return err
}

func watermillMessages(msgs []history.Message) []*message.Message {
	all := make([]*message.Message, len(msgs))
	for i, m := range msgs {
		all[i] = message.NewMessage(m.ID, []byte("{}"))
		outbox.SetKey(all[i], m.Key)
	}
	return all
}

// publishWithin is how it is done.
func (p *producer) publishWithin(aggregate int) error {
	ctx := context.Background()
	tx, msgs, err := p.change(ctx, aggregate)
	if err != nil {
		return err
	}
	defer tx.Rollback(ctx) //nolint:errcheck // it has ended, or the error is told
	p.recorder.Add(history.Event{Kind: history.Publishing, Tx: p.tx(), Messages: msgs})
	if err := p.store.Publisher(tx).Publish(inputs, watermillMessages(msgs)...); err != nil {
		return err
	}
	p.pause()
	if p.random.IntN(10) == 0 {
		err := tx.Rollback(ctx)
		p.recorder.Add(history.Event{Kind: history.RolledBack, Tx: p.tx()})
		return err
	}
	p.recorder.Add(history.Event{Kind: history.Committing, Tx: p.tx()})
	err = tx.Commit(ctx)
	p.recorder.Add(history.Event{Kind: history.Committed, Tx: p.tx()})
	return err
}

// pause is short mostly, and now and then so long that others commit meanwhile.
func (p *producer) pause() {
	longest := time.Millisecond
	if p.random.IntN(20) == 0 {
		longest = 50 * time.Millisecond
	}
	time.Sleep(time.Duration(p.random.Int64N(int64(longest))))
}

// run lets everything happen, and returns what has.
func (s *system) run(t *testing.T, seed uint64) *history.Report {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var producing, consuming sync.WaitGroup
	errs := make(chan error, producers)
	for i := range producers {
		name := fmt.Sprintf("producer-%d", i)
		p := &producer{system: s, name: name, recorder: s.record(t, name), random: rand.New(rand.NewPCG(seed, uint64(1+i)))}
		producing.Go(func() { errs <- p.run(ctx) })
	}
	for i := range consumers {
		name := fmt.Sprintf("consumer-%d", i)
		c := &consumer{system: s, name: name, recorder: s.record(t, name), random: rand.New(rand.NewPCG(seed, uint64(100+i)))}
		consuming.Go(func() { c.run(i) })
	}
	relays := s.disturb(t, rand.New(rand.NewPCG(seed, producers+1)))
	stop()
	producing.Wait()
	for range producers {
		require.NoError(t, <-errs)
	}
	s.produced.Store(true)
	consuming.Wait()
	for _, r := range relays {
		r.leave(t)
	}
	s.crashed.Wait()
	return history.Check(s.collect(t))
}

// consumer is a process that handles a share of the inputs.
type consumer struct {
	*system
	name     string
	recorder *history.Recorder
	random   *rand.Rand
	attempts int
}

// run handles the inputs of a share, each once or twice, until nothing moves any more.
func (c *consumer) run(share int) {
	for next := 0; ; {
		landed := c.broker.landed()
		if next == len(landed) {
			if c.produced.Load() && time.Since(c.broker.idleSince()) > c.patience {
				return
			}
			time.Sleep(2 * time.Millisecond)
			continue
		}
		for ; next < len(landed); next++ {
			mine := landed[next].Topic == inputs && next%consumers == share
			for again := mine; again; again = c.random.IntN(10) == 0 {
				c.handleUntilDone(landed[next].ID)
			}
		}
	}
}

// handleUntilDone delivers a message as a broker does: again and again, until it is acknowledged.
func (c *consumer) handleUntilDone(id string) {
	deliver := c.deliver
	if deliver == nil {
		deliver = (*consumer).handleOnce
	}
	for {
		msg := message.NewMessage(id, []byte("{}"))
		if deliver(c, msg) == nil {
			return
		}
	}
}

// handleOnce is how it is done.
func (c *consumer) handleOnce(msg *message.Message) error {
	dedup, err := outbox.NewDeduplicator(c.store.Processed(), group)
	if err != nil {
		return err
	}
	handled := false
	c.attempts++
	name := fmt.Sprintf("%s-%d", c.name, c.attempts)
	_, err = dedup.Middleware(func(msg *message.Message) ([]*message.Message, error) {
		handled = true
		tx, _ := c.store.TxFromContext(msg.Context())
		return nil, c.effect(msg.Context(), tx, msg.UUID, name)
	})(msg)
	c.ended(name, handled, err)
	return err
}

func (c *consumer) ended(tx string, handled bool, err error) {
	switch {
	case !handled: // before
	case err != nil:
		c.recorder.Add(history.Event{Kind: history.RolledBack, Tx: tx})
	default:
		c.recorder.Add(history.Event{Kind: history.Committed, Tx: tx})
	}
}

// effect is what the handler does: it writes, publishes, and fails now and then after both.
func (c *consumer) effect(ctx context.Context, tx pgx.Tx, id, name string) error {
	out := history.Message{ID: name + "-out", Key: "output-" + id}
	if _, err := tx.Exec(ctx, "INSERT INTO effects (input, output) VALUES ($1, $2)", id, out.ID); err != nil {
		return err
	}
	if err := c.note(ctx, tx, out); err != nil {
		return err
	}
	c.recorder.Add(history.Event{Kind: history.Publishing, Tx: name, Messages: []history.Message{out}})
	if err := c.store.Publisher(tx).Publish(outputs, watermillMessages([]history.Message{out})...); err != nil {
		return err
	}
	if c.random.IntN(20) == 0 {
		return errCrash
	}
	return nil
}

// collect reads the records and the tables.
func (s *system) collect(t *testing.T) *history.History {
	t.Helper()
	h := &history.History{
		Sent: map[string]history.Message{}, Slots: map[string]int{}, Landings: s.broker.landed(), Concurrency: concurrency,
		Wanted: func(l history.Landing) []string {
			if l.Topic == inputs {
				return []string{group}
			}
			return nil
		},
	}
	var err error
	h.Events, err = history.Read(s.folder)
	require.NoError(t, err)
	ctx := t.Context()
	rows, err := s.pool.Query(ctx, "SELECT id, key, number, (hashtextextended(key, 0) & 63)::int FROM sent")
	require.NoError(t, err)
	var m history.Message
	var slot int
	_, err = pgx.ForEachRow(rows, []any{&m.ID, &m.Key, &m.Number, &slot}, func() error {
		h.Sent[m.ID], h.Slots[m.Key] = m, slot
		return nil
	})
	require.NoError(t, err)
	rows, err = s.pool.Query(ctx, "SELECT input, output FROM effects")
	require.NoError(t, err)
	e := history.Effect{Group: group}
	_, err = pgx.ForEachRow(rows, []any{&e.ID, &e.Output}, func() error {
		h.Effects = append(h.Effects, e)
		return nil
	})
	require.NoError(t, err)
	require.NoError(t, s.pool.QueryRow(ctx, "SELECT count(*) FROM outbox_messages").Scan(&h.Left))
	return h
}
