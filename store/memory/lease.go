package memory

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/internal/claim"
)

// Claim implements [outbox.LeasedStore]. The first call starts a goroutine that renews the leases; it ends with
// Release without ids, or Close.
func (s *Store) Claim(ctx context.Context, limit, maxBytes int) ([]outbox.Message, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.db.mu.Lock()
	defer s.unlockAndTell()
	if s.closed {
		return nil, outbox.ErrClosed
	}
	observer, eventCtx := outbox.ObserverFromContext(ctx), context.WithoutCancel(ctx)
	s.tell = func(e outbox.Event) { observer.Observe(eventCtx, e) }
	s.db.instances[s] = struct{}{}
	s.startBeats()
	s.renew()
	s.balance()
	if len(s.held) == 0 {
		return nil, outbox.ErrNoLease
	}
	s.db.showDue()
	now := s.db.tick()
	for ids := s.queue.Wanted(now, limit); len(ids) > 0; ids = s.queue.Wanted(now, limit) {
		for _, id := range ids {
			s.reload(id)
		}
		if s.queue.Ready(now) >= limit {
			break
		}
	}
	claimed := s.queue.Claim(now, limit, maxBytes)
	msgs := make([]outbox.Message, len(claimed))
	for i, row := range claimed {
		msgs[i] = *row
		msgs[i].ID = s.claimID(row)
		msgs[i].Status = outbox.StatusProcessing
		msgs[i].Payload, msgs[i].Headers = bytes.Clone(row.Payload), maps.Clone(row.Headers)
	}
	return msgs, nil
}

// observed keeps an event for the next unlockAndTell: an Observer may call the store.
func (s *Store) observed(e outbox.Event) { s.events = append(s.events, e) }

func (s *Store) unlockAndTell() {
	events, tell := s.events, s.tell
	s.events = nil
	s.db.mu.Unlock()
	for _, e := range events {
		tell(e)
	}
}

// reload gives a message that waited its payload back, unless somebody else has settled it.
func (s *Store) reload(id int64) {
	row := s.db.messages[id]
	if row == nil {
		s.queue.Gone(id)
		return
	}
	s.queue.Load(id, row)
}

// showDue moves delayed messages whose time has come to the owners of their slots.
func (db *database) showDue() {
	now := db.now()
	for id, row := range db.delayed {
		if !row.AvailableAt.After(now) {
			delete(db.delayed, id)
			db.show(row)
		}
	}
}

// renew extends the leases that this instance still has, and drops the claims of those it has lost.
func (s *Store) renew() {
	now := s.db.now()
	s.beat = now
	var lost []int
	for slot := range s.held {
		l := &s.db.slots[slot]
		if l.owner == s && l.expires.After(now) {
			l.expires = now.Add(s.db.ttl)
			continue
		}
		lost = append(lost, slot)
		s.drop(slot)
	}
	if len(lost) > 0 {
		slices.Sort(lost)
		s.observed(outbox.LeaseLostEvent{Slots: lost, Err: errors.New("the lease has expired")})
	}
}

func (s *Store) drop(slot int) {
	delete(s.held, slot)
	claimed := s.queue.DropSlot(slot)
	for _, row := range claimed {
		s.orphans[s.claimID(row)] = row
	}
	if len(claimed) > 0 {
		s.lost[slot]++
	}
	if l := &s.db.slots[slot]; l.owner == s {
		*l = lease{}
	}
}

// balance takes free slots up to this instance's fair share, and gives back what is above it and has nothing claimed.
func (s *Store) balance() {
	now, live := s.db.now(), 0
	for other := range s.db.instances {
		if other.beat.Add(s.db.ttl).After(now) {
			live++
		}
	}
	share := (len(s.db.slots) + live - 1) / live
	if surplus := len(s.held) - share; surplus > 0 && s.queue.Claimed() == 0 {
		given := slices.Sorted(maps.Keys(s.held))[:surplus]
		for _, slot := range given {
			s.drop(slot)
		}
		s.observed(outbox.LeaseLostEvent{Slots: given})
	}
	var gained []int
	for slot := range s.db.slots {
		l := &s.db.slots[slot]
		if len(s.held) < share && !s.held[slot] && (l.owner == nil || !l.expires.After(now)) {
			*l = lease{owner: s, expires: now.Add(s.db.ttl)}
			s.held[slot] = true
			gained = append(gained, slot)
		}
	}
	if len(gained) == 0 {
		return
	}
	s.observed(outbox.LeaseGainedEvent{Slots: gained})
	for _, row := range s.db.sorted(s.db.messages) {
		if slices.Contains(gained, s.db.slotOf(row)) && s.db.delayed[rowID(row)] == nil {
			s.add(row)
		}
	}
}

func (db *database) sorted(rows map[int64]*outbox.Message) []*outbox.Message {
	return slices.SortedFunc(maps.Values(rows), func(a, b *outbox.Message) int { return cmp.Compare(rowID(a), rowID(b)) })
}

// startBeats starts the goroutine that renews the leases at a third of their time. The caller holds mu.
func (s *Store) startBeats() {
	if s.stopBeats != nil {
		return
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	s.stopBeats = func() { close(stop); <-stopped }
	go func() { // ends with Release without ids, or Close
		defer close(stopped)
		ticker := time.NewTicker(s.db.ttl / 3)
		defer ticker.Stop()
		for {
			select {
			case <-stop:
				return
			case <-ticker.C:
				s.db.mu.Lock()
				s.renew()
				s.unlockAndTell()
			}
		}
	}()
}

// Settle implements [outbox.LeasedStore].
func (s *Store) Settle(ctx context.Context, outcomes ...outbox.Outcome) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := claim.CheckOutcomes(outcomes); err != nil {
		return fmt.Errorf("memory: settle: %w", err)
	}
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	var unknown []string
	for _, o := range outcomes {
		row := s.claimedRow(o.ID)
		if row == nil {
			unknown = append(unknown, o.ID)
			continue
		}
		id := rowID(row)
		s.write(row, o)
		delete(s.orphans, o.ID)
		switch {
		case o.Status != outbox.StatusPending:
			s.queue.Done(id)
		case s.inQueue(o.ID) != nil:
			s.queue.Postpone(id, s.db.tick()+int64(o.RetryAfter))
		}
	}
	if len(unknown) > 0 {
		return fmt.Errorf("memory: %q: %w", unknown, outbox.ErrNotClaimed)
	}
	return nil
}

// write applies an outcome to the database, unless somebody else has ended the message meanwhile.
func (s *Store) write(row *outbox.Message, o outbox.Outcome) {
	id := rowID(row)
	if s.db.messages[id] == nil || (o.Status == outbox.StatusPending && o.Err == nil) {
		return
	}
	next := *row
	if o.Err != nil {
		next.LastError = o.Err.Error()
		next.Retries++
	}
	if o.Status == outbox.StatusPending {
		next.AvailableAt = s.db.now().Add(o.RetryAfter)
		s.db.messages[id] = &next
		return
	}
	delete(s.db.messages, id)
	if o.Status == outbox.StatusFailed || o.Archive {
		next.Status, next.ProcessedAt = o.Status, s.db.now()
		s.db.archive[id] = &next
	}
}

// Release implements [outbox.LeasedStore].
func (s *Store) Release(_ context.Context, ids ...string) error {
	s.db.mu.Lock()
	for _, id := range ids {
		if row := s.inQueue(id); row != nil {
			s.queue.Release(rowID(row))
		}
		delete(s.orphans, id)
	}
	stop := s.stopBeats
	if len(ids) > 0 || stop == nil {
		s.db.mu.Unlock()
		return nil
	}
	s.stopBeats = nil
	if given := slices.Sorted(maps.Keys(s.held)); len(given) > 0 {
		for _, slot := range given {
			s.drop(slot)
		}
		s.observed(outbox.LeaseLostEvent{Slots: given})
	}
	s.queue = newQueue()
	clear(s.orphans)
	delete(s.db.instances, s)
	s.db.notify()
	s.unlockAndTell()
	stop() // not under mu, which the heartbeat takes
	return nil
}

// Owned implements [outbox.LeasedStore].
func (s *Store) Owned(id string) bool {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	row := s.inQueue(id)
	if row == nil {
		return false
	}
	slot := s.db.slotOf(row)
	return s.db.slots[slot].owner == s && s.db.slots[slot].expires.After(s.db.now())
}

// Leads implements [outbox.Leader]: it is who has the first slot.
func (s *Store) Leads() bool {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	return s.db.slots[0].owner == s && s.db.slots[0].expires.After(s.db.now())
}

// PauseTopics implements [outbox.TopicPauser].
func (s *Store) PauseTopics(topics ...string) {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	s.queue.Pause(topics)
}

// Notify implements [outbox.Notifier].
func (s *Store) Notify(ctx context.Context, wake func()) error {
	for {
		s.db.mu.Lock()
		changed := s.db.changed
		s.db.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
			wake()
		}
	}
}
