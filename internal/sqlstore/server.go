package sqlstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/internal/claim"
	"github.com/watermill-outbox/outbox/internal/scan"
)

const (
	// lookInterval is how often an idle instance looks whether the server is still the same.
	lookInterval = time.Second
	// listInterval is how often one that reads without need for a list looks nevertheless who holds the sequence, for Expecting.
	listInterval = 50 * time.Millisecond
)

// server is what tells a database server, and its history, from others.
type server struct {
	cluster   string // does not change
	history   string // changes when a standby is promoted, a backup restored, or the sequence set back
	started   string // changes with each start, and tells a server from all others
	lastValue int64  // of the sequence: it does not go back by itself
}

var (
	// errRestarted is a fetch whose holders mean nothing any more, because the server has restarted.
	errRestarted = errors.New("the server has restarted")
	// errUnknown is a fetch from a server that is to be looked at first.
	errUnknown = errors.New("the server may be another")
	// errOtherHistory is a fetch from a server that gives ids again.
	errOtherHistory = errors.New("the server has lost what this instance has seen: it was promoted or restored, or the " +
		"sequence of ids was set back")
	// errStandby is a server that does not show who writes, and takes no marks.
	errStandby = errors.New("the server is a standby: connect to the primary (target_session_attrs=read-write)")
)

// sight is what one look at the server has shown.
type sight struct {
	server  server
	holders []scan.Holder // the transactions that may still commit ids below the last value of the sequence
	standby bool
}

// look returns the query that fills s.
func (e *Engine) look(s *sight) Query {
	return Query{SQL: e.sql["holders"], Each: func(row Scanner) (bool, error) {
		var id *string
		var prepared *bool
		err := row.Scan(&s.server.lastValue, &id, &prepared, &s.server.cluster, &s.server.history, &s.server.started, &s.standby)
		if err == nil && id != nil {
			s.holders = append(s.holders, scan.Holder{ID: *id, Prepared: *prepared})
		}
		return true, err
	}}
}

// listed tells fetch who holds the sequence, and returns what it must read, too. It returns an error if the server is not
// the one that this instance has read from.
func (e *Engine) listed(fetch *scan.Fetch, now sight) ([]scan.Run, error) {
	if now.standby {
		return nil, errStandby
	}
	e.expecting.Store(len(now.holders) > 0)
	known := e.server
	e.server, e.looked, e.unlisted = now.server, time.Now(), false
	switch {
	case known == server{}:
	case now.server.cluster != known.cluster || now.server.history != known.history ||
		now.server.lastValue < surelyTaken(known.lastValue, e.reader.Cursor()):
		return nil, errOtherHistory
	case now.server.started != known.started:
		return nil, errRestarted
	}
	return fetch.Listed(now.holders, now.server.lastValue-loggedAhead), nil
}

// loggedAhead is by how much the sequence's last value may be too high: while nextval writes it to the log, its row has the
// value of 32 calls later (SEQ_LOG_VALS in PostgreSQL's sequence.c), and a SELECT does not wait for that.
const loggedAhead = 32

// surelyTaken is the id up to which all are known to be taken from the sequence, by its last value as a look has shown it: up
// to what has been read, or all but those that it may have been too high by. Ids above it that are given again do no harm:
// nothing was read there and nothing counts as settled.
func surelyTaken(lastValue, cursor int64) int64 {
	return max(lastValue-loggedAhead, min(cursor, lastValue))
}

// Expecting tells whether somebody has taken ids and not committed, when that was last looked at. His signal is yet to come, and
// others have not sent one of their own.
func (e *Engine) Expecting() bool { return e.expecting.Load() }

// glance returns the query that fills s, without its cluster, for less than a look costs.
func (e *Engine) glance(s *server) Query {
	return Query{SQL: e.sql["server"], Each: func(row Scanner) (bool, error) {
		return true, row.Scan(&s.lastValue, &s.history, &s.started)
	}}
}

// isKnown tells whether a server, after a glance, is the one that was last looked at, and goes on from there.
func (e *Engine) isKnown(now server) bool {
	return now.history == e.server.history && now.started == e.server.started &&
		now.lastValue >= surelyTaken(e.server.lastValue, e.reader.Cursor())
}

// mustLook tells that it is time to look whether the server is still the same, and who holds the sequence.
func (e *Engine) mustLook() bool {
	interval := lookInterval
	if e.unlisted {
		interval = listInterval
	}
	return e.dialect.Late && time.Since(e.looked) >= interval
}

// SQLState returns the SQLSTATE of a server's error, or nothing. Those of both pgx and lib/pq have it.
func SQLState(err error) string {
	var withState interface{ SQLState() string }
	if errors.As(err, &withState) {
		return withState.SQLState()
	}
	return ""
}

// readOnly is the SQLSTATE of a statement that writes where nobody can.
const readOnly = "25006"

// refuseStandby returns errStandby where that is the cause of err, and err otherwise.
func (e *Engine) refuseStandby(ctx context.Context, err error) error {
	if !e.dialect.Late || SQLState(err) != readOnly {
		return err
	}
	var now sight
	q := e.look(&now)
	if e.db.Query(ctx, q.SQL, q.Args, q.Each) == nil && now.standby {
		return e.fail("take slots", errStandby)
	}
	return err
}

// startOver forgets all that was read. Leases may have gone back in time like everything else, and another instance may
// rely on one that this server does not know: nobody takes any before they all have ended. What is in flight may be marked,
// since rows are found by id and uuid, and outcomes by an ID that no message gets from now on. The caller holds claimMu.
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
	e.generation++
	e.historyBegan = e.generation
	e.notBefore = time.Now().Add(e.ttl)
	e.events = append(e.events, outbox.LeaseLostEvent{Slots: lost, Err: fmt.Errorf("%s: %w", e.dialect.Name, reason)})
}

// isOfThisHistory tells whether a claim was made since ids last began anew. The caller holds mu.
func (e *Engine) isOfThisHistory(id string) bool {
	return e.historyBegan == 0 || claim.Generation(id) >= e.historyBegan
}

// inQueue returns the claimed message that has this ID, or nil: not one that was claimed again since. The caller holds mu.
func (e *Engine) inQueue(id string) (m *outbox.Message, slot int) {
	n, err := claim.RowID(id)
	if err != nil {
		return nil, 0
	}
	if m, slot, ok := e.queue.Get(n); ok && m.ID == id {
		return m, slot
	}
	return nil, 0
}
