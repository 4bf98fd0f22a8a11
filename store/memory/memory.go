// Package memory keeps an outbox in memory. It is the reference implementation of the store interfaces and the double
// for tests: it has transactions, several relay instances, leases, and a clock that tests can move. Nothing in it
// outlives the process.
package memory

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"strconv"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/internal/claim"
)

// Store is an outbox in memory: one relay instance over a database that [Store.NewInstance] can share. It is safe for
// concurrent use.
type Store struct {
	db *database

	// All below is guarded by db.mu.
	queue     *claim.Queue
	orphans   map[string]*outbox.Message // by ID: claimed when their lease was lost
	lost      map[int]int                // by slot: how often claimed messages of it were
	held      map[int]bool               // slots this instance believes to hold
	beat      time.Time                  // when it last renewed its leases
	events    []outbox.Event             // not told yet
	tell      func(outbox.Event)
	stopBeats func() // ends the heartbeat goroutine and waits for it; nil while there is none
	closed    bool
}

var _ interface {
	outbox.LeasedStore
	outbox.Transactor
	outbox.Notifier
	outbox.TopicPauser
	outbox.Inspector
	outbox.StatsReporter
} = (*Store)(nil)

// database is what the instances share.
type database struct {
	mu        sync.Mutex // the only lock of the package
	ahead     time.Duration
	ttl       time.Duration
	lastID    int64
	messages  map[int64]*outbox.Message
	archive   map[int64]*outbox.Message
	delayed   map[int64]*outbox.Message // untried, and not due when last looked at
	slots     []lease
	instances map[*Store]struct{} // those that claim
	processed map[processedID]time.Time
	marking   map[processedID]*Tx // marks that are not committed
	changed   chan struct{}       // closed and replaced at every commit
}

type lease struct {
	owner   *Store
	expires time.Time
}

// Option configures a [Store].
type Option func(*database) error

// WithSlots sets how many slots the messages are spread over: 1, the default, to 64. Instances share the slots.
func WithSlots(n int) Option {
	return func(db *database) error {
		if n < 1 || n > 64 {
			return fmt.Errorf("the number of slots is %d, must be from 1 to 64", n)
		}
		db.slots = make([]lease, n)
		return nil
	}
}

// WithLeaseTTL sets after what time the leases of an instance that no longer renews them end: 10 ms to 1 h, default 10 s.
func WithLeaseTTL(d time.Duration) Option {
	return func(db *database) error {
		if d < 10*time.Millisecond || d > time.Hour {
			return fmt.Errorf("LeaseTTL is %v, must be from 10ms to 1h", d)
		}
		db.ttl = d
		return nil
	}
}

// New returns an empty store.
func New(opts ...Option) (*Store, error) {
	db := &database{
		ttl:       10 * time.Second,
		messages:  map[int64]*outbox.Message{},
		archive:   map[int64]*outbox.Message{},
		delayed:   map[int64]*outbox.Message{},
		slots:     make([]lease, 1),
		instances: map[*Store]struct{}{},
		processed: map[processedID]time.Time{},
		marking:   map[processedID]*Tx{},
		changed:   make(chan struct{}),
	}
	for _, opt := range opts {
		if opt == nil {
			return nil, errors.New("memory: an option is nil")
		}
		if err := opt(db); err != nil {
			return nil, fmt.Errorf("memory: %w", err)
		}
	}
	return newInstance(db), nil
}

// NewInstance returns another relay instance over the same messages, as if in another process.
func (s *Store) NewInstance() *Store { return newInstance(s.db) }

func newInstance(db *database) *Store {
	return &Store{
		db: db, queue: newQueue(), held: map[int]bool{}, orphans: map[string]*outbox.Message{}, lost: map[int]int{},
		tell: func(outbox.Event) {},
	}
}

// newQueue has no bounds worth naming: everything is in memory already.
func newQueue() *claim.Queue { return claim.New(64, 1<<62, 1<<62) }

// Advance moves the database's clock forward by d, for all instances: delayed messages fall due, and leases that are not
// renewed meanwhile end. A negative d moves it back.
func (s *Store) Advance(d time.Duration) {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	s.db.ahead += d
	s.db.notify()
}

// Now is the time by the database's clock.
func (s *Store) Now() time.Time {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	return s.db.now()
}

func (db *database) now() time.Time { return time.Now().Add(db.ahead) }

// tick is now on the scale of claim.Queue.
func (db *database) tick() int64 { return db.now().UnixNano() }

func (db *database) notify() {
	close(db.changed)
	db.changed = make(chan struct{})
}

// Migrate does nothing; it is there so that a test can treat all stores alike.
func (s *Store) Migrate(context.Context) error { return nil }

// Close ends what relaying has begun: it releases claims and leases and ends the heartbeat. Publishing goes on working.
func (s *Store) Close() error {
	s.db.mu.Lock()
	s.closed = true // no Claim takes the leases again
	s.db.mu.Unlock()
	return s.Release(context.Background())
}

// Save implements [outbox.Store]. tx is a *Tx, or nil for a transaction of its own.
func (s *Store) Save(ctx context.Context, tx any, msgs ...outbox.Message) error {
	if len(msgs) == 0 {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if tx == nil {
		own := s.begin()
		defer own.Rollback() //nolint:errcheck // after Commit it has nothing to do
		if err := s.Save(ctx, own, msgs...); err != nil {
			return err
		}
		return own.Commit()
	}
	t, err := s.txOf(tx)
	if err != nil {
		return err
	}
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	if t.ended() {
		return ErrTxDone
	}
	for i := range msgs {
		row := msgs[i]
		s.db.lastID++
		row.ID = strconv.FormatInt(s.db.lastID, 10)
		if row.UUID == "" {
			row.UUID = watermill.NewUUID()
		}
		row.Payload = append([]byte{}, row.Payload...)
		row.Headers = maps.Clone(row.Headers)
		row.Status, row.Retries, row.LastError = outbox.StatusPending, 0, ""
		row.CreatedAt, row.ProcessedAt = s.db.now(), time.Time{}
		t.saved = append(t.saved, &row)
	}
	return nil
}

// commitRow makes a message visible. The caller holds mu.
func (db *database) commitRow(row *outbox.Message) {
	id := rowID(row)
	db.messages[id] = row
	if row.Retries == 0 && row.AvailableAt.After(db.now()) {
		db.delayed[id] = row
		return
	}
	db.show(row)
}

// show tells the owner of the message's slot of it. The caller holds mu.
func (db *database) show(row *outbox.Message) {
	if owner := db.slots[db.slotOf(row)].owner; owner != nil {
		owner.add(row)
	}
}

func (s *Store) add(row *outbox.Message) {
	due := int64(0)
	if !row.AvailableAt.IsZero() {
		due = row.AvailableAt.UnixNano()
	}
	s.queue.Add(claim.Row{
		ID: rowID(row), Slot: s.db.slotOf(row), Key: row.Key, Topic: row.Topic, Due: due, Message: row,
	})
}

func (db *database) slotOf(row *outbox.Message) int {
	spread := row.Key
	if spread == "" {
		spread = row.UUID
	}
	return int(crc32.ChecksumIEEE([]byte(spread)) % uint32(len(db.slots))) //nolint:gosec // at most 64
}

func rowID(row *outbox.Message) int64 {
	id, err := strconv.ParseInt(row.ID, 10, 64)
	if err != nil {
		panic(err) // the store made the id
	}
	return id
}

// FetchPending implements [outbox.Store].
func (s *Store) FetchPending(ctx context.Context, limit int) ([]outbox.Message, error) {
	msgs, err := s.Claim(ctx, limit, claim.ByHandBytes)
	if errors.Is(err, outbox.ErrNoLease) {
		return nil, nil
	}
	return msgs, err
}

// MarkProcessed implements [outbox.Store].
func (s *Store) MarkProcessed(ctx context.Context, ids ...string) error {
	return s.Settle(ctx, claim.ProcessedByHand(ids)...)
}

// MarkFailed implements [outbox.Store], with the retries and backoff of a Forwarder made without options.
func (s *Store) MarkFailed(ctx context.Context, id string, err error) error {
	s.db.mu.Lock()
	row := s.claimedRow(id)
	s.db.mu.Unlock()
	if row == nil {
		return fmt.Errorf("memory: %s: %w", id, outbox.ErrNotClaimed)
	}
	outcome := claim.FailedByHand(row, err)
	outcome.ID = id
	return s.Settle(ctx, outcome)
}

// claimedRow returns a message that this instance has claimed, also if it lost the lease since. The caller holds mu.
func (s *Store) claimedRow(id string) *outbox.Message {
	if row := s.inQueue(id); row != nil {
		return row
	}
	return s.orphans[id]
}

// inQueue is the same but for claims whose lease was lost, also if the message was claimed again since. The caller holds mu.
func (s *Store) inQueue(id string) *outbox.Message {
	n, err := claim.RowID(id)
	if err != nil {
		return nil
	}
	if row, _, ok := s.queue.Get(n); ok && s.claimID(row) == id {
		return row
	}
	return nil
}

// claimID returns the ID of a message that is claimed, or is about to be. The caller holds mu.
func (s *Store) claimID(row *outbox.Message) string {
	return claim.WithGeneration(row.ID, s.lost[s.db.slotOf(row)])
}
