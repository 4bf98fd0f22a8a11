package outbox

import (
	"bytes"
	"context"
	"maps"
	"slices"
	"sync"
	"time"
)

// maxParked is how many messages of paused topics a basicStore keeps before it fetches no more.
const maxParked = 10_000

// basicStore makes a LeasedStore of a Store that has only the five methods, for the Forwarder. It has no leases, so
// every message that the Store gives out is this instance's until it is marked: one that is released or put off waits
// here, in memory. Retries and giving up are the Store's.
type basicStore struct {
	Store

	mu      sync.Mutex
	claimed map[string]Message
	waiting []waitingMessage // by when they are due, so that one that keeps failing does not stand before all others
	paused  []string
}

type waitingMessage struct {
	Message
	due time.Time
}

func newBasicStore(store Store) *basicStore {
	return &basicStore{Store: store, claimed: map[string]Message{}}
}

// Claim gives out what waits here and is due, and then what the Store has. A five-method Store knows no size, so
// maxBytes applies to the former only. While the Store fails, nothing is given out: it could not be marked either.
func (s *basicStore) Claim(ctx context.Context, limit, maxBytes int) ([]Message, error) {
	msgs := s.takeWaiting(limit, maxBytes)
	s.mu.Lock()
	full := len(s.waiting) >= maxParked
	s.mu.Unlock()
	if len(msgs) == limit || full {
		return msgs, nil
	}
	fetched, err := s.FetchPending(ctx, limit-len(msgs))
	if err != nil {
		for i := range msgs {
			s.giveBack(time.Time{}, msgs[i].ID)
		}
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range fetched {
		if slices.Contains(s.paused, m.Topic) {
			s.wait(waitingMessage{Message: m})
			continue
		}
		s.claimed[m.ID] = m
		msgs = append(msgs, lent(m))
	}
	return msgs, nil
}

func (s *basicStore) takeWaiting(limit, maxBytes int) []Message {
	s.mu.Lock()
	defer s.mu.Unlock()
	var msgs []Message
	now, bytes := time.Now(), 0
	s.waiting = slices.DeleteFunc(s.waiting, func(w waitingMessage) bool {
		if len(msgs) == limit || (len(msgs) > 0 && bytes+w.Size() > maxBytes) || w.due.After(now) ||
			slices.Contains(s.paused, w.Topic) {
			return false
		}
		bytes += w.Size()
		s.claimed[w.ID] = w.Message
		msgs = append(msgs, lent(w.Message))
		return true
	})
	return msgs
}

// lent returns a copy of m for the broker's publisher, which may write to it.
func lent(m Message) Message {
	m.Payload, m.Headers = bytes.Clone(m.Payload), maps.Clone(m.Headers)
	return m
}

// Settle forgets each message as soon as the Store knows of it, so that a second call counts nothing twice.
func (s *basicStore) Settle(ctx context.Context, outcomes ...Outcome) error {
	var processed []string
	for _, o := range outcomes {
		s.mu.Lock()
		_, known := s.claimed[o.ID]
		s.mu.Unlock()
		switch {
		case !known:
		case o.Status == StatusProcessed:
			processed = append(processed, o.ID)
		case o.Err == nil:
			s.giveBack(time.Now().Add(o.RetryAfter), o.ID)
		default:
			if err := s.MarkFailed(ctx, o.ID, o.Err); err != nil {
				return err
			}
			s.forget(o.ID)
		}
	}
	if len(processed) == 0 {
		return nil
	}
	if err := s.MarkProcessed(ctx, processed...); err != nil {
		return err
	}
	s.forget(processed...)
	return nil
}

func (s *basicStore) forget(ids ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		delete(s.claimed, id)
	}
}

// giveBack has claimed messages given out again when they are due.
func (s *basicStore) giveBack(due time.Time, ids ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		if m, known := s.claimed[id]; known {
			delete(s.claimed, id)
			s.wait(waitingMessage{m, due})
		}
	}
}

// wait puts a message behind those that are due no later. The caller holds mu.
func (s *basicStore) wait(w waitingMessage) {
	at, _ := slices.BinarySearchFunc(s.waiting, w, func(other, w waitingMessage) int {
		if other.due.After(w.due) {
			return 1
		}
		return -1
	})
	s.waiting = slices.Insert(s.waiting, at, w)
}

// Release implements LeasedStore. What waits here at the end of a run is there for the next one.
func (s *basicStore) Release(_ context.Context, ids ...string) error {
	if len(ids) == 0 {
		s.mu.Lock()
		ids = slices.Collect(maps.Keys(s.claimed))
		s.mu.Unlock()
	}
	s.giveBack(time.Time{}, ids...)
	return nil
}

// Owned implements LeasedStore.
func (s *basicStore) Owned(string) bool { return true }

// PauseTopics implements TopicPauser.
func (s *basicStore) PauseTopics(topics ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.paused = slices.Clone(topics)
}

// Notify implements Notifier, if the Store does.
func (s *basicStore) Notify(ctx context.Context, wake func()) error {
	if n, ok := s.Store.(Notifier); ok {
		return n.Notify(ctx, wake)
	}
	<-ctx.Done()
	return nil
}
