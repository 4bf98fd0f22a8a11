package sqlstore

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/internal/claim"
	"github.com/watermill-outbox/outbox/internal/scan"
	"github.com/watermill-outbox/outbox/internal/sqlname"
)

// Options are what the constructors of the stores take.
type Options struct {
	Schema   string
	Prefix   string
	LeaseTTL time.Duration
	// NoNotify is for dialects that notify.
	NoNotify bool
	// SweepInterval is for tests.
	SweepInterval time.Duration
	// MinPatience is for tests.
	MinPatience time.Duration
}

// DefaultLeaseTTL is how long a relay instance that has died keeps others from its slots.
const DefaultLeaseTTL = 10 * time.Second

const (
	// perKey is how many messages of one key are claimed at once. While one hangs, its key holds up to so many in the
	// Forwarder's window; a key that is alone waits for a claim and a mark once in so many.
	perKey = 64
	// maxKnown bounds the ids in memory, at about 150 bytes each.
	maxKnown = 250_000
	// maxIdleBytes bounds the payloads that were read and not claimed yet.
	maxIdleBytes = 16 << 20
	// surplusPoll is how soon slots are looked at again that are to be given back when their messages are done.
	surplusPoll = 50 * time.Millisecond
	// Nothing is claimed of such a slot for surplusFreeze in every surplusInterval.
	surplusFreeze, surplusInterval = time.Second, 10 * time.Second
	// beginTimeout is how long RunInTx waits for a transaction to begin.
	beginTimeout = 30 * time.Second
)

// Engine is an outbox.LeasedStore, with all optional interfaces, over a DB and a Dialect. The stores embed it.
//
// Two locks: claimMu lets one Claim at a time read from the database; mu guards the state in memory and is never held
// during a statement. Who needs both takes claimMu first.
type Engine struct {
	self    outbox.Store // the store that embeds the engine, which contexts carry transactions for
	db      DB
	dialect Dialect
	names   sqlname.Names
	sql     queries
	ttl     time.Duration
	owner   string

	sweepInterval, minPatience time.Duration

	claimMu sync.Mutex
	// All of these are claimMu's.
	checked     bool              // the schema was found whole
	owning      bool              // the database may name this instance as an owner
	appeared    bool              // the database may name it as one that is there
	released    bool              // since the last Claim
	nextBalance time.Time         // when to look again who has which slots
	surplus     map[int]time.Time // those to be given back, and since when
	reader      scan.Reader
	idle        bool      // the last fetch has shown nothing
	due         dueCursor // all delayed rows up to it have been read
	nextDue     time.Time // when to read on from there
	rowSize     int       // about what a row has that is read, payload and all; 0 is unknown
	server      server    // that was last read from
	looked      time.Time // when it was last looked at
	unlisted    bool      // messages were read since, without a look
	notBefore   time.Time // when slots may be taken again

	sweepFinds atomic.Int64 // how often a sweep has found something
	expecting  atomic.Bool  // see Expecting
	present    atomic.Bool  // the database names this instance as one that is there, as far as it knows

	mu sync.Mutex
	// All of these are mu's.
	queue   *claim.Queue
	orphans map[string]*outbox.Message // by ID: claimed when their lease was lost
	// Message IDs that are given now have this generation, unless it is 0; those of the server's present history have at least
	// the one of historyBegan.
	generation, historyBegan int
	leases                   map[int]time.Time // slot → end by the local monotonic clock, a little before the database's
	databaseTime, toldAt     time.Time         // what the database's clock said, and when
	tell                     func(outbox.Event)
	events                   []outbox.Event          // not told yet
	stopBeat                 context.CancelFunc      // nil while there is no heartbeat
	lastClaim                time.Time               // when the last has begun
	calls                    map[*time.Time]struct{} // of Claim and Settle that have not ended, by when they have begun
	closed                   bool

	// For LeaseTerm. Written under mu, by leasesChanged and drop.
	term, termEnds atomic.Int64 // when it ends on the same scale as begun's

	begun    time.Time    // what claim.Queue counts time from
	notified atomic.Int64 // when the last wake-up was sent, on the same scale
	beats    sync.WaitGroup
	sweeps   sync.WaitGroup
}

type dueCursor struct {
	at time.Time
	id int64
}

// New returns an Engine. self is the store that embeds it.
func New(self outbox.Store, db DB, dialect Dialect, opts Options) (*Engine, error) {
	names, err := sqlname.New(opts.Schema, opts.Prefix, dialect.Quote)
	if err != nil {
		return nil, err
	}
	if opts.LeaseTTL == 0 {
		opts.LeaseTTL = DefaultLeaseTTL
	}
	if opts.LeaseTTL < 100*time.Millisecond || opts.LeaseTTL > time.Hour {
		return nil, fmt.Errorf("%s: LeaseTTL is %v, must be from 100ms to 1h", dialect.Name, opts.LeaseTTL)
	}
	if opts.SweepInterval == 0 {
		opts.SweepInterval = DefaultSweepInterval
	}
	if opts.MinPatience == 0 {
		opts.MinPatience = DefaultMinPatience
	}
	q, err := dialect.render(names)
	if err != nil {
		return nil, err
	}
	e := &Engine{
		self: self, db: db, dialect: dialect, names: names, sql: q, ttl: opts.LeaseTTL, owner: instanceName(),
		tell: func(outbox.Event) {}, begun: time.Now(), sweepInterval: opts.SweepInterval, minPatience: opts.MinPatience,
		reader: scan.Reader{InOrder: !dialect.Late}, calls: map[*time.Time]struct{}{},
	}
	e.notified.Store(math.MinInt64 / 2)
	e.forget()
	return e, nil
}

// forget empties the state of claims. The caller holds both locks, or the only reference.
func (e *Engine) forget() {
	if e.queue != nil && e.queue.Claimed() > 0 {
		e.generation++ // what comes of these claims may be told when their messages are claimed again
	}
	e.queue = claim.New(perKey, maxKnown, maxIdleBytes)
	e.orphans = map[string]*outbox.Message{}
	e.leases = map[int]time.Time{}
	e.term.Add(1)
	e.leasesChanged()
	e.reader.Reset()
	e.due, e.nextDue = dueCursor{}, time.Time{}
}

// instanceName is unique per Engine; host and pid are for people who look into the table.
func instanceName() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return fmt.Sprintf("%.40s/%d/%s", host, os.Getpid(), rand.Text()[:12])
}

// tick is now on the scale of claim.Queue: monotonic, whatever the clocks do.
func (e *Engine) tick() int64 { return int64(time.Since(e.begun)) }

// fail says what was being done when err came, and what to do if the schema is not there.
func (e *Engine) fail(doing string, err error) error {
	if err == nil {
		return nil
	}
	if e.dialect.IsMissing(err) {
		return fmt.Errorf("%s: %s: %w: %w", e.dialect.Name, doing, err, outbox.ErrNotMigrated)
	}
	return fmt.Errorf("%s: %s: %w", e.dialect.Name, doing, err)
}

// Close implements io.Closer: it releases claims and leases, and frees prepared statements. The database handle stays
// open, and publishing goes on working.
func (e *Engine) Close() error {
	e.mu.Lock()
	e.closed = true // no Claim takes the leases again
	e.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), max(e.ttl, e.minPatience))
	defer cancel()
	err := e.Release(ctx)
	e.sweeps.Wait()
	return errors.Join(err, e.db.Close())
}

// RunInTx implements outbox.Transactor.
func (e *Engine) RunInTx(ctx context.Context, fn func(ctx context.Context, tx any) error) error {
	tx, err := e.begin(ctx)
	if err != nil {
		return e.fail("begin a transaction", err)
	}
	ended := false
	defer func() {
		if !ended { // fn panicked
			_ = tx.Rollback()
		}
	}()
	err = fn(outbox.ContextWithTx(ctx, e.self, tx.Handle()), tx.Handle())
	ended = true
	if err != nil {
		_ = tx.Rollback() // its error would hide err; the transaction ends either way
		return err
	}
	return e.fail("commit", tx.Commit())
}

// begin begins a transaction that a cancelled ctx neither prevents nor ends.
func (e *Engine) begin(ctx context.Context) (Tx, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), beginTimeout)
	defer cancel()
	return e.db.Begin(ctx)
}

// inTx runs a few statements of the engine's own in a transaction.
func (e *Engine) inTx(ctx context.Context, fn func(Conn) error) error {
	tx, err := e.db.Begin(ctx)
	if err != nil {
		return err
	}
	if err := fn(tx); err != nil {
		_ = tx.Rollback() // its error would hide err; the transaction ends either way
		return err
	}
	return tx.Commit()
}
