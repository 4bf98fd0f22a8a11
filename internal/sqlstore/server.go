package sqlstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/internal/scan"
)

// lookInterval is how often an idle instance looks whether the server is still the same.
const lookInterval = time.Second

// server is what tells a database server, and its history, from others.
type server struct {
	timeline  string // changes when a standby is promoted, or a backup restored
	started   string // changes with each start
	lastValue int64  // of the sequence: it does not go back by itself
}

var (
	// errRestarted is a fetch whose holders mean nothing any more, because the server has restarted.
	errRestarted = errors.New("the server has restarted")
	// errOtherHistory is a fetch from a server that gives ids again.
	errOtherHistory = errors.New("the server has lost what this instance has seen: it was promoted or restored, or the " +
		"sequence of ids was set back")
)

// holders returns the transactions that may still commit ids below the last value of the sequence, and that. It returns an
// error if the server is not the one that this instance has read from.
func (e *Engine) holders(ctx context.Context, conn Conn) (list []scan.Holder, lastValue int64, err error) {
	var now server
	var standby bool
	err = conn.Query(ctx, e.sql["holders"], nil, func(s Scanner) (bool, error) {
		var id *string
		var prepared *bool
		if err := s.Scan(&now.lastValue, &id, &prepared, &now.timeline, &now.started, &standby); err != nil {
			return false, err
		}
		if id != nil {
			list = append(list, scan.Holder{ID: *id, Prepared: *prepared})
		}
		return true, nil
	})
	if err != nil {
		return nil, 0, err
	}
	if standby {
		return nil, 0, errors.New("the server is a standby, which does not show who writes: connect to the primary " +
			"(target_session_attrs=read-write)")
	}
	known := e.server
	e.server, e.looked = now, time.Now()
	switch {
	case known == server{}:
	case now.timeline != known.timeline || now.lastValue < known.lastValue:
		return nil, 0, errOtherHistory
	case now.started != known.started:
		return nil, 0, errRestarted
	}
	return list, now.lastValue, nil
}

// startOver forgets all that was read. Leases may have gone back in time like everything else, and another instance may
// rely on one that this server does not know: nobody takes any before they all have ended. What is in flight may be marked,
// since rows are found by id and uuid. The caller holds claimMu.
func (e *Engine) startOver(reason error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var lost []int
	for slot := range e.leases {
		lost = append(lost, slot)
		e.drop(slot)
	}
	orphans := e.orphans
	e.forget()
	e.orphans = orphans
	e.notBefore = time.Now().Add(e.ttl)
	e.events = append(e.events, outbox.LeaseLostEvent{Slots: lost, Err: fmt.Errorf("%s: %w", e.dialect.Name, reason)})
}
