package storetest

import (
	"context"
	"testing"
	"time"

	"github.com/watermill-outbox/outbox"
)

// Harness is an empty database with the store's tables, and what the suite needs to work on it. Each subtest gets one
// of its own; subtests run in parallel. Whatever a Harness opens it closes by t.Cleanup.
type Harness struct {
	// Open returns a store over the harness's database. Each call makes a new relay instance, which for all the stores
	// know lives in another process. The suite closes what is an io.Closer. Required.
	Open func(t *testing.T) outbox.Store

	// Begin starts a transaction of the kind that users pass to Save. Required.
	Begin func(t *testing.T, s outbox.Store) Tx

	// Write records value within tx, as the business writes of a user do: in a table of the harness. tx is what
	// Tx.Handle returns or what a Transactor gives to its function. Required.
	Write func(ctx context.Context, tx any, value string) error

	// Written returns what Write has recorded and is committed, in any order. Required.
	Written func(ctx context.Context) ([]string, error)

	// ForeignTxs are values that Save must refuse, by a name for them: the database handle, which would commit each
	// statement by itself, a connection, a nil pointer of each type of transaction, a transaction of another driver.
	// The suite has some of its own, such as a string.
	ForeignTxs map[string]any

	// Processed returns the ProcessedStore that belongs to the store. Nil if there is none.
	Processed func(s outbox.Store) outbox.ProcessedStore

	// DB is the handle that methods of the ProcessedStore take in place of a transaction. Nil if there is none.
	DB any

	// Expire ends the lease of the relay instance s, or for a store without leases its claims, as if s had been unable
	// to renew them for all their time: its process was killed or paused, or had no network. Others can take them as soon
	// as Expire returns, and s cannot renew them. Whether s notices is up to the store, and s stays open: what it settles
	// late must have its effect. Leases of other instances may end only if those know at once, as by a clock that all
	// share. Nil if there is no way.
	Expire func(t *testing.T, s outbox.Store)

	// LeaseTTL is how long the leases of the stores last without renewal. The suite waits for that long once, unless
	// [Features].VirtualTime is on; 0 skips it.
	LeaseTTL time.Duration

	// Damage makes the stored headers of the pending message with this UUID undecodable. Nil if they cannot be.
	Damage func(t *testing.T, uuid string)

	// ProcessedAt returns when the message with this UUID was processed, as it is stored. Needed only where
	// [Features].VirtualTime is off; nil if there is no way.
	ProcessedAt func(t *testing.T, uuid string) time.Time

	// MarkedAt is the same for a mark of the ProcessedStore.
	MarkedAt func(t *testing.T, group, msgID string) time.Time
}

// Tx is a transaction of the user.
type Tx interface {
	// Handle is what Save takes.
	Handle() any
	Commit() error
	Rollback() error
}

// SavepointTx is the [Tx] of a harness whose [Features] have Savepoints.
type SavepointTx interface {
	Tx
	// Savepoint sets a savepoint; RollbackTo undoes what was done in the transaction since.
	Savepoint(ctx context.Context, name string) error
	RollbackTo(ctx context.Context, name string) error
}

// Features are the differences between stores that the contract leaves room for. The zero value is a store with the
// five methods of [outbox.Store] and nothing else.
type Features struct {
	// Slots is the number of slots that leases are for, 1 or more: the store is an [outbox.LeasedStore]. With one slot,
	// one instance relays and the others stand by. 0 is a store without leases.
	Slots int

	// OneWriter says that a transaction that has written makes all others wait until it ends, as in SQLite. What needs
	// two of them at once is skipped.
	OneWriter bool

	// Savepoints says that Begin returns a [SavepointTx].
	Savepoints bool

	// The store is an outbox.Transactor, outbox.Notifier and so on; its ProcessedStore is a Transactor if the store is.
	// The suite fails if the store has an interface that is not declared, or lacks one that is.
	Transactor    bool
	Notifier      bool
	TopicPauser   bool
	Leader        bool
	TermReporter  bool
	Inspector     bool
	StatsReporter bool

	// Deaf says that Notify hears nothing here, as behind a pooler that shares connections out: it must say so, and not
	// wait in vain.
	Deaf bool

	// MaxRetries is after how many calls of MarkFailed a message is set aside; 0 means that of
	// [outbox.DefaultConfig]. Messages of a store without leases can get there only by waiting for each backoff, so
	// make it small for such a store, and leave the first backoff at about a tenth of a second.
	MaxRetries int

	// VirtualTime says that the store does no I/O and takes its time from package time, so that subtests can run in
	// bubbles of testing/synctest, where time passes only while everybody waits. Delays are then long and cost nothing.
	VirtualTime bool
}

func (f Features) withDefaults() Features {
	if f.MaxRetries == 0 {
		f.MaxRetries = outbox.DefaultConfig().MaxRetries
	}
	return f
}
