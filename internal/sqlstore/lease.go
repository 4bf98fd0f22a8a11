package sqlstore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/watermill-outbox/outbox"
)

// balanceInterval is how often an instance that claims looks whether others have come or gone.
const balanceInterval = 100 * time.Millisecond

// patienceAtEnd is for how long the answer to a statement is awaited that nobody wants any more. If it were cut off, the
// server might run it after the one that undoes it, and the others would keep a share of the slots for an instance that has
// left, until a lease is over.
const patienceAtEnd = time.Second

// outlast returns a context that ends patienceAtEnd after ctx, unless that has ended already, or the database is in this
// process.
func (e *Engine) outlast(ctx context.Context) (context.Context, context.CancelFunc) {
	if ctx.Err() != nil || e.dialect.Slots <= 1 {
		return ctx, func() {}
	}
	lasting, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(patienceAtEnd, cancel) })
	return lasting, func() {
		stop()
		cancel()
	}
}

// localEnd is when a lease that was asked for at asked ends for this instance: a twentieth of its time before the
// database gives the slot away, for clocks that do not run at the same pace.
func (e *Engine) localEnd(asked time.Time) time.Time { return asked.Add(e.ttl - e.ttl/20) }

// lead makes sure that this instance holds slots, or returns outbox.ErrNoLease. The caller holds claimMu.
func (e *Engine) lead(ctx context.Context) error {
	e.dropExpired()
	e.mu.Lock()
	held, closed := len(e.leases), e.closed
	e.mu.Unlock()
	switch {
	case closed:
		return outbox.ErrClosed
	case time.Now().Before(e.notBefore):
		return outbox.ErrNoLease
	case held == 0 || !time.Now().Before(e.nextBalance):
		gained, err := e.balance(ctx, held)
		if err != nil {
			return e.refuseStandby(ctx, err)
		}
		if held+len(gained) == 0 {
			return outbox.ErrNoLease
		}
	}
	return nil
}

// balance takes slots that are free, up to a fair share, and gives back what is above it.
func (e *Engine) balance(ctx context.Context, held int) (gained []int, err error) {
	if err := e.appear(ctx); err != nil {
		return nil, e.fail("appear to the other instances", err)
	}
	slots, live, err := e.listSlots(ctx)
	if err != nil {
		return nil, e.fail("look for free slots", err)
	}
	if len(slots) == 0 {
		return nil, fmt.Errorf("%s: the table %s is empty, so nobody can relay: insert its rows again, as the migration does",
			e.dialect.Name, e.names.Table("outbox_slots"))
	}
	e.nextBalance = time.Now().Add(min(e.ttl/3, balanceInterval))
	take, surplus := share(slots, e.owner, live)
	if err := e.giveSurplus(ctx, surplus); err != nil {
		return nil, e.fail("give slots back", err)
	}
	if len(take) == 0 {
		return nil, nil
	}
	lasting, cancel := e.outlast(ctx)
	defer cancel()
	asked := time.Now()
	e.owning = true
	if gained, err = e.slots(lasting, "slots_take", e.dialect.Batch(take)...); err != nil {
		return nil, e.fail("take slots", err)
	}
	e.gain(gained, asked, held == 0)
	return gained, nil
}

// gain notes slots that the database has given to this instance.
func (e *Engine) gain(gained []int, asked time.Time, first bool) {
	if len(gained) == 0 {
		return
	}
	e.mu.Lock()
	for _, slot := range gained {
		e.leases[slot] = e.localEnd(asked)
	}
	e.leasesChanged()
	e.startBeat()
	e.events = append(e.events, outbox.LeaseGainedEvent{Slots: gained})
	e.mu.Unlock()
	if first {
		e.reader.Reset()
	} else {
		e.reader.Acquired(gained...)
	}
	e.due, e.nextDue = dueCursor{}, time.Time{} // rows of these slots may be anywhere; what is known already is not taken in twice
}

// giveSurplus gives slots back as soon as nothing of them is claimed. Until then no more of them is, but not for long at a
// time: a call that hangs must not hold up the other keys of its slot.
func (e *Engine) giveSurplus(ctx context.Context, surplus []int) error {
	e.mu.Lock()
	var given, lost, frozen []int
	since := map[int]time.Time{}
	for _, slot := range surplus {
		if e.queue.ClaimedOf(slot) > 0 {
			if since[slot] = e.surplus[slot]; since[slot].IsZero() {
				since[slot] = time.Now()
			}
			if time.Since(since[slot])%surplusInterval < surplusFreeze {
				frozen = append(frozen, slot)
			}
			continue
		}
		given = append(given, slot)
		if _, held := e.leases[slot]; held {
			lost = append(lost, slot)
			e.drop(slot)
		}
	}
	e.surplus = since
	e.queue.Freeze(frozen)
	if len(lost) > 0 {
		e.events = append(e.events, outbox.LeaseLostEvent{Slots: lost})
	}
	if len(frozen) > 0 {
		e.nextBalance = time.Now().Add(surplusPoll)
	}
	e.mu.Unlock()
	if len(given) == 0 {
		return nil
	}
	_, err := e.db.Exec(ctx, e.sql["slots_give"], append([]any{e.owner}, e.dialect.Batch(numbers(given))...)...)
	return err
}

// appear tells the other instances that this one is there, and has the heartbeat tell it from then on.
func (e *Engine) appear(ctx context.Context) error {
	if e.dialect.Slots <= 1 || e.present.Load() {
		return nil
	}
	lasting, cancel := e.outlast(ctx)
	defer cancel()
	_, err := e.db.Exec(lasting, e.sql["relay_appear"], e.owner, e.ttl.Milliseconds())
	e.appeared = e.appeared || SQLState(err) == "" // or nobody knows
	if err != nil {
		return err
	}
	e.present.Store(true)
	e.mu.Lock()
	e.startBeat()
	e.mu.Unlock()
	return nil
}

// beat tells that it is still there.
func (e *Engine) beat(ctx context.Context) error {
	n, err := e.db.Exec(ctx, e.sql["relay_beat"], e.owner, e.ttl.Milliseconds())
	if err == nil && n == 0 {
		e.present.Store(false) // the next Claim appears
	}
	return err
}

// leave tells them that it needs no slots.
func (e *Engine) leave(ctx context.Context) error {
	_, err := e.db.Exec(ctx, e.sql["relay_leave"], e.owner)
	return err
}

// listSlots returns all slots, and how many instances there are to share them with, this one included.
func (e *Engine) listSlots(ctx context.Context) (slots []slotState, live int, err error) {
	err = e.db.Query(ctx, e.sql["slots_list"], nil, func(s Scanner) (bool, error) {
		var slot slotState
		err := s.Scan(&slot.number, &slot.owner, &slot.expired, &live)
		e.mu.Lock()
		_, slot.held = e.leases[slot.number]
		e.mu.Unlock()
		slots = append(slots, slot)
		return true, err
	})
	return slots, max(live, 1), err
}

// slots runs slots_take or slots_renew, and notes what the database's clock says.
func (e *Engine) slots(ctx context.Context, query string, args ...any) ([]int, error) {
	var slots []int
	err := e.db.Query(ctx, e.sql[query], append([]any{e.owner, e.ttl.Milliseconds()}, args...), func(s Scanner) (bool, error) {
		var slot int
		var now any
		if err := s.Scan(&slot, &now); err != nil {
			return false, err
		}
		slots = append(slots, slot)
		databaseNow, err := e.dialect.Time.FromColumn(now)
		if err != nil {
			return false, err
		}
		e.mu.Lock()
		e.databaseTime, e.toldAt = databaseNow, time.Now()
		e.mu.Unlock()
		return true, nil
	})
	slices.Sort(slots)
	return slots, err
}

// startBeat starts the goroutines that renew the leases and sweep; they end with Release without ids, or Close. The caller
// holds mu.
func (e *Engine) startBeat() {
	if e.stopBeat != nil || e.closed {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	e.stopBeat = cancel
	e.sweeps.Go(func() { e.sweepOn(ctx) })
	e.beats.Go(func() {
		ticker := time.NewTicker(e.ttl / 3)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
				e.renew(ctx)
				e.dropExpired()
				e.tellAll()
			}
		}
	})
}

// renew extends the leases. One that has ended meanwhile and was not dropped yet goes on with its claims: the database
// still names this instance, so nobody else had the slot in between.
func (e *Engine) renew(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, e.ttl/2)
	defer cancel()
	e.mu.Lock()
	held, idle := maps.Clone(e.leases), time.Since(e.lastClaim) >= e.ttl
	hangs := e.hangs()
	e.mu.Unlock()
	if hangs { // let others have the slots
		return
	}
	if e.dialect.Slots > 1 {
		appear := e.beat
		if idle { // who does not claim needs no share of the slots that are free
			appear = e.leave
		}
		if err := appear(ctx); err != nil {
			return // as below
		}
	}
	asked := time.Now()
	renewed, err := e.slots(ctx, "slots_renew", e.dialect.Batch(numbers(slices.Collect(maps.Keys(held))))...)
	if err != nil {
		return // the next beat tries again; until then the leases run on, and end by themselves if it comes to that
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for slot, end := range held {
		switch current, ok := e.leases[slot]; {
		case !ok || !current.Equal(end): // given back or taken anew meanwhile
		case slices.Contains(renewed, slot):
			e.leases[slot] = e.localEnd(asked)
		default:
			e.leases[slot] = time.Time{} // somebody else has it
		}
	}
	e.leasesChanged()
}

// leasesChanged notes when the first lease ends. The caller holds mu.
func (e *Engine) leasesChanged() {
	var first time.Time
	for _, end := range e.leases {
		if first.IsZero() || end.Before(first) {
			first = end
			if end.IsZero() {
				break
			}
		}
	}
	e.termEnds.Store(int64(first.Sub(e.begun)))
}

// LeaseTerm implements outbox.TermReporter. The end is read first: where a lease is lost, the term changes before the end
// of those that are left is told, so that no end of a later term comes with an earlier term.
func (e *Engine) LeaseTerm() (term int64, ends time.Time) {
	end := e.termEnds.Load()
	return e.term.Load(), e.begun.Add(time.Duration(end))
}

// calling notes that a call has begun; what it returns notes that it has ended.
func (e *Engine) calling() (ended func()) {
	begun := time.Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.calls[&begun] = struct{}{}
	return func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.calls, &begun)
	}
}

// hangs tells whether a call has not ended long after it should have: its driver does not go by its deadline, as lib/pq. The
// caller holds mu.
func (e *Engine) hangs() bool {
	for begun := range e.calls {
		if time.Since(*begun) > e.patience()+e.ttl {
			return true
		}
	}
	return false
}

// dropExpired gives up the claims of slots whose lease has ended.
func (e *Engine) dropExpired() {
	e.mu.Lock()
	var lost []int
	for slot, end := range e.leases {
		if !end.After(time.Now()) {
			lost = append(lost, slot)
			e.drop(slot)
		}
	}
	if len(lost) > 0 {
		slices.Sort(lost)
		err := errors.New("the lease was not renewed in time, or taken over")
		e.events = append(e.events, outbox.LeaseLostEvent{Slots: lost, Err: err})
	}
	e.mu.Unlock()
}

// tellAll tells the Observer of what has happened. The caller holds no lock: an Observer may call the store.
func (e *Engine) tellAll() {
	e.mu.Lock()
	events, tell := e.events, e.tell
	e.events = nil
	e.mu.Unlock()
	for _, event := range events {
		tell(event)
	}
}

// drop forgets a slot. The caller holds mu.
func (e *Engine) drop(slot int) {
	delete(e.leases, slot)
	e.term.Add(1)
	e.leasesChanged()
	claimed := e.queue.DropSlot(slot)
	for _, m := range claimed {
		e.orphans[m.ID] = m
	}
	if len(claimed) > 0 {
		e.generation++
	}
}

// Owned implements outbox.LeasedStore.
func (e *Engine) Owned(id string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	m, slot := e.inQueue(id)
	return m != nil && e.leases[slot].After(time.Now())
}

// Leads implements outbox.Leader: it is who has the first slot.
func (e *Engine) Leads() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.leases[0].After(time.Now())
}

// Release implements outbox.LeasedStore.
func (e *Engine) Release(ctx context.Context, ids ...string) error {
	if len(ids) == 0 {
		return e.releaseAll(ctx)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, id := range ids {
		if m, _ := e.inQueue(id); m != nil {
			e.queue.Release(messageID(m))
		}
		delete(e.orphans, id)
	}
	return nil
}

func (e *Engine) releaseAll(ctx context.Context) error {
	defer e.tellAll()
	e.mu.Lock()
	if e.stopBeat != nil {
		e.stopBeat() // first of all, since a sweep that hangs has claimMu
	}
	e.mu.Unlock()
	e.claimMu.Lock()
	defer e.claimMu.Unlock()
	e.mu.Lock()
	lost := slices.Sorted(maps.Keys(e.leases))
	if len(lost) > 0 {
		e.events = append(e.events, outbox.LeaseLostEvent{Slots: lost})
	}
	if e.stopBeat != nil {
		e.stopBeat()
		e.stopBeat = nil
	}
	e.forget()
	e.mu.Unlock()
	e.beats.Wait()
	e.released = true
	var left, given error
	e.present.Store(false)
	if e.appeared {
		left = again(func() error { return e.leave(ctx) })
		e.appeared = left != nil
	}
	if e.owning {
		given = again(func() error {
			_, err := e.db.Exec(ctx, e.sql["slots_leave"], e.owner)
			return err
		})
		e.owning = given != nil
	}
	return e.fail("give up the slots", errors.Join(left, given))
}

// again runs a statement up to three times, where it has lost against another: a database may have serializable as its default.
func again(statement func() error) (err error) {
	for range 3 {
		if err = statement(); !strings.HasPrefix(SQLState(err), "40") {
			break
		}
	}
	return err
}
