package storetest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
)

type mode int

const (
	byHand      mode = iota // FetchPending, MarkProcessed, MarkFailed
	underLeases             // Claim, Settle, Release, with crashes and takeovers
)

// world is a run of several writers and several relay instances on one database. Writers serialize what they write of
// one key, so that there is an order to keep; some of their transactions roll back. Relays publish into a list; some of
// their attempts fail, some instances give up their leases, some crash.
type world struct {
	e    *env
	mode mode
	seed uint64

	keys  []string
	locks map[string]*sync.Mutex // of a key: the row lock on an aggregate

	// crash is held by an instance whose lease is ended from outside, and for reading by those that publish: a real lease
	// ends by the clock, and by its owner's clock first.
	crash sync.RWMutex

	mu        sync.Mutex          // guards what follows
	committed map[string][]string // by key, in order
	missing   map[string]bool     // committed and not published yet, or published already and committed any moment
	published []outbox.Message
	tried     map[string]bool // failed once already
	writing   bool
}

const (
	worldWriters      = 4
	worldTransactions = 15 // of each writer
	worldRelays       = 3
	worldLives        = 3 // of each relay
)

func newWorld(e *env, m mode) *world {
	w := &world{
		e: e, mode: m, seed: rand.Uint64(), //nolint:gosec // guards nothing
		keys: []string{"", "a", "b", "c", "d"}, locks: map[string]*sync.Mutex{},
		committed: map[string][]string{}, missing: map[string]bool{}, tried: map[string]bool{}, writing: true,
	}
	for _, key := range w.keys {
		w.locks[key] = &sync.Mutex{}
	}
	e.Logf("seed %d", w.seed)
	return w
}

func (w *world) random(i int) *rand.Rand {
	return rand.New(rand.NewPCG(w.seed, uint64(i))) //nolint:gosec // guards nothing
}

func (w *world) run() {
	e := w.e
	writer := e.open()
	relays := make([]*worldRelay, worldRelays)
	for i := range relays {
		relays[i] = &worldRelay{world: w, random: w.random(100 + i)}
		for range worldLives {
			relays[i].lives = append(relays[i].lives, e.open())
		}
	}
	var writers, all sync.WaitGroup
	errs := make(chan error, worldWriters+worldRelays)
	for i := range worldWriters {
		writers.Go(func() { errs <- w.write(writer, i) })
	}
	for _, r := range relays {
		all.Go(func() { errs <- r.run() })
	}
	writers.Wait()
	w.mu.Lock()
	w.writing = false
	w.mu.Unlock()
	all.Wait()
	close(errs)
	for err := range errs {
		require.NoError(e, err)
	}
	for _, r := range relays {
		for _, s := range r.lives {
			require.NoError(e, e.handBack(s))
		}
	}
	requireOrder(e, w.committed, w.published)
	if w.mode == byHand {
		seen := map[string]bool{}
		for _, m := range w.published {
			require.False(e, seen[m.UUID], "message %s was returned again, though it had been claimed and not been marked as "+
				"failed, and no instance has crashed", m.UUID)
			seen[m.UUID] = true
		}
	}
	if w.mode == underLeases { // without, claims cannot be handed over
		w.checkLeftovers(e.open())
	}
}

// checkLeftovers drains what was published but not marked before a crash, which comes twice, and finds nothing else.
func (w *world) checkLeftovers(s outbox.Store) {
	for {
		msgs := w.e.arrivals(s)
		if len(msgs) == 0 {
			return
		}
		w.published = append(w.published, msgs...)
		requireOrder(w.e, w.committed, w.published)
		w.e.done(s, msgs...)
	}
}

func (w *world) write(s outbox.Store, writer int) error {
	random := w.random(writer)
	for i := range worldTransactions {
		key := w.keys[random.IntN(len(w.keys))]
		var calls [][]outbox.Message
		n := 0
		for range 1 + random.IntN(2) {
			var msgs []outbox.Message
			for range 1 + random.IntN(3) {
				msgs = append(msgs, keyed(fmt.Sprintf("%d-%d-%d", writer, i, n), key))
				n++
			}
			calls = append(calls, msgs)
		}
		if err := w.transaction(s, key, calls, random.IntN(4) > 0); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) transaction(s outbox.Store, key string, calls [][]outbox.Message, commit bool) error {
	if key != "" {
		w.locks[key].Lock()
		defer w.locks[key].Unlock()
	}
	tx := w.e.h.Begin(w.e.T, s)
	defer func() { _ = tx.Rollback() }()
	var names []string
	for _, msgs := range calls {
		if err := s.Save(w.e.ctx, tx.Handle(), msgs...); err != nil {
			return fmt.Errorf("call Save: %w", err)
		}
		names = append(names, uuids(msgs)...)
	}
	if !commit {
		return tx.Rollback()
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.committed[key] = append(w.committed[key], names...)
	for _, uuid := range names {
		w.missing[uuid] = !w.missing[uuid] // a relay may have been faster
		if !w.missing[uuid] {
			delete(w.missing, uuid)
		}
	}
	return nil
}

// publish records a publication.
func (w *world) publish(m outbox.Message) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, earlier := range w.published {
		if earlier.UUID == m.UUID {
			w.published = append(w.published, m)
			return
		}
	}
	w.published = append(w.published, m)
	if w.missing[m.UUID] {
		delete(w.missing, m.UUID)
	} else {
		w.missing[m.UUID] = true // until its writer knows that it has committed
	}
}

func (w *world) isDone() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.writing && len(w.missing) == 0
}

// mayFail answers true once for a message: stores without leases may set aside soon.
func (w *world) mayFail(m outbox.Message) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	may := !w.tried[m.UUID] && w.e.features.MaxRetries > 1
	w.tried[m.UUID] = true
	return may
}

// worldRelay is a relay with several lives: when its instance has crashed, it goes on with a new one.
type worldRelay struct {
	*world
	random *rand.Rand
	lives  []outbox.Store
	life   int
}

func (r *worldRelay) run() error {
	for deadline := time.Now().Add(2 * patience); !r.isDone(); {
		if time.Now().After(deadline) {
			r.mu.Lock()
			defer r.mu.Unlock()
			return fmt.Errorf("after %v these messages, which are committed, were not delivered (P2), or these, which were "+
				"rolled back, were (P3): %v", 2*patience, r.missing)
		}
		msgs, err := r.claim(1 + r.random.IntN(12))
		if err != nil {
			return err
		}
		if len(msgs) == 0 {
			r.pause()
			continue
		}
		if err := r.relay(msgs); err != nil {
			return err
		}
	}
	return nil
}

func (r *worldRelay) leased() outbox.LeasedStore {
	l, _ := r.lives[r.life].(outbox.LeasedStore)
	return l
}

func (r *worldRelay) claim(limit int) ([]outbox.Message, error) {
	if r.mode == underLeases {
		return r.e.tryClaim(r.e.ctx, r.leased(), limit, noMaxBytes)
	}
	if r.leased() == nil {
		limit = 1 // what is behind a failed message of its key could not be released
	}
	return r.e.tryFetch(r.lives[r.life], limit)
}

func (r *worldRelay) pause() { time.Sleep(time.Duration(1+r.random.IntN(3)) * time.Millisecond) }

// relay publishes a batch, one message at a time.
func (r *worldRelay) relay(msgs []outbox.Message) error {
	var done, failed, rest []outbox.Message
	blocked := map[string]bool{}
	for _, m := range msgs {
		fate := r.random.IntN(20)
		switch {
		case m.Key != "" && blocked[m.Key]:
			rest = append(rest, m)
		case fate == 0 && r.mayFail(m):
			failed, blocked[m.Key] = append(failed, m), true
		case fate == 1 && r.leased() != nil, !r.publishOwned(m):
			rest, blocked[m.Key] = append(rest, m), true
		default:
			done = append(done, m)
		}
	}
	if r.random.IntN(3) == 0 {
		r.pause() // others may claim meanwhile
	}
	if r.mode == underLeases && r.random.IntN(12) == 0 && r.crashed() {
		if r.random.IntN(2) == 0 {
			return nil
		}
		return settleLate(r.e.ctx, r.lives[r.life-1], done)
	}
	return r.mark(done, failed, rest)
}

// publishOwned publishes unless the claim is lost.
func (r *worldRelay) publishOwned(m outbox.Message) bool {
	r.crash.RLock()
	defer r.crash.RUnlock()
	if l := r.leased(); l != nil && !l.Owned(m.ID) {
		return false
	}
	r.publish(m)
	return true
}

// crashed ends the instance's life, if there is another one.
func (r *worldRelay) crashed() bool {
	if r.e.h.Expire == nil || r.life == len(r.lives)-1 {
		return false
	}
	r.crash.Lock()
	defer r.crash.Unlock()
	r.e.h.Expire(r.e.T, r.lives[r.life])
	r.life++
	return true
}

// settleLate is what an instance does that was paused for longer than its lease.
func settleLate(ctx context.Context, s outbox.Store, done []outbox.Message) error {
	err := s.MarkProcessed(ctx, ids(done)...)
	if errors.Is(err, outbox.ErrNotClaimed) {
		return nil
	}
	return err
}

func (r *worldRelay) mark(done, failed, rest []outbox.Message) error {
	ctx, s, l := r.e.ctx, r.lives[r.life], r.leased()
	errs := []error{s.MarkProcessed(ctx, ids(done)...)}
	for _, m := range failed {
		if r.mode == underLeases {
			wait := time.Duration(r.random.IntN(4)) * time.Millisecond
			errs = append(errs, l.Settle(ctx, outbox.Outcome{
				ID: m.ID, Status: outbox.StatusPending, RetryAfter: wait, Err: errBroker,
			}))
		} else {
			errs = append(errs, s.MarkFailed(ctx, m.ID, errBroker))
		}
	}
	if len(rest) > 0 && l != nil {
		errs = append(errs, l.Release(ctx, ids(rest)...))
	}
	if r.mode == underLeases && r.random.IntN(10) == 0 {
		errs = append(errs, l.Release(ctx))
	}
	for i, err := range errs { // the lease, and with it the claims, may have been lost and found again meanwhile
		if errors.Is(err, outbox.ErrNotClaimed) && r.mode == underLeases {
			errs[i] = nil
		}
	}
	return errors.Join(errs...)
}
