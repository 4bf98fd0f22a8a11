package outbox

import (
	"context"
	"encoding/json"
	"time"
)

// Store keeps outbox messages. All methods are safe for concurrent use.
//
// The five methods can be used by hand, without a [Forwarder]: FetchPending, publish, MarkProcessed. A store that has
// only these gets P1 to P3 of the promises and keeps its own policy; see [LeasedStore] for what the built-in stores
// do. What a Forwarder has fetched from it and has not settled waits in that Forwarder's memory, from one Run to the
// next: another Forwarder gets it when the process, or the Store's claims, have ended. Make one, and run it again.
type Store interface {
	// Save writes msgs within tx, all of them or none, in their order. tx is what the store's documentation says it
	// takes; a plain nil means a transaction of the store's own. Saving no messages does nothing.
	Save(ctx context.Context, tx any, msgs ...Message) error

	// FetchPending claims up to limit messages and returns them. A claimed message is not returned again, to anybody,
	// until it is marked as failed, or until this process has gone and its claim with it. Of messages with one key it
	// returns the oldest ones, in order, and none behind one that is claimed already or waits for its next attempt. It
	// returns none, and no error, while another instance has the right to claim.
	FetchPending(ctx context.Context, limit int) ([]Message, error)

	// MarkProcessed records that the messages with these ids were published. They are kept as processed until
	// DeleteProcessedBefore.
	MarkProcessed(ctx context.Context, ids ...string) error

	// MarkFailed records a failed attempt: the message is pending again after a backoff or, when its retries have
	// reached the maximum, set aside as failed together with err.
	MarkFailed(ctx context.Context, id string, err error) error

	// DeleteProcessedBefore deletes messages that were processed strictly before t and returns how many. It never
	// touches pending or failed ones.
	DeleteProcessedBefore(ctx context.Context, t time.Time) (int64, error)
}

// LeasedStore is what the built-in stores are; the [Forwarder] finds it by assertion. The policy (how often to retry,
// when to give up, what to keep) is the Forwarder's, and reaches the store through [Outcome].
//
// Claims live in memory, under a lease that the store holds in the database and renews by itself. When the lease is
// lost, so are the claims, and another relay instance may publish the messages. So may this one, if it regains the lease:
// the messages then come with other IDs, by which Owned is false of the claims that were lost, and what Settle and Release
// are told of them late leaves the newer claims alone. Only a message that was published or set aside is done under any ID.
type LeasedStore interface {
	Store

	// Claim returns up to limit messages whose size together is at most maxBytes, or one if the first is larger than
	// that. Messages of one key come in ascending order; while any of them is claimed, no more of that key are. It
	// returns [ErrNoLease] while other instances hold all slots, and events of leases go to the [Observer] in ctx (see
	// [ContextWithObserver]). A message that cannot be decoded comes with [StatusFailed] and its LastError.
	Claim(ctx context.Context, limit, maxBytes int) ([]Message, error)

	// Settle ends claims. All outcomes are written in one transaction; on an error none of them is known to be, and the
	// same call may be made again. It works for claims whose lease was lost, too: what was published is done, whoever
	// may publish it next. Unknown ids are reported by an error that wraps [ErrNotClaimed] after all others were
	// settled.
	Settle(ctx context.Context, outcomes ...Outcome) error

	// Release ends claims without an outcome: the messages may be claimed again at once. Unknown ids are ignored.
	// Without ids it ends all claims and gives up the leases, so that another instance takes over without waiting for
	// their end: take care not to call it with a batch that happens to be empty. The IDs of those claims are unknown from
	// then on, also when their messages are claimed again.
	Release(ctx context.Context, ids ...string) error

	// Owned tells whether the claim's lease still holds by the local monotonic clock. Ask right before publishing.
	Owned(id string) bool
}

// Outcome is what became of a claimed message.
type Outcome struct {
	ID string
	// Status is [StatusProcessed]; [StatusPending] for a message to be tried again; or [StatusFailed] for one to be set
	// aside.
	Status MessageStatus
	// Archive keeps a processed message for DeleteProcessedBefore. Without it the row is deleted.
	Archive bool
	// RetryAfter is how long a pending message and all behind it in its key wait.
	RetryAfter time.Duration
	// Err is why the attempt failed. A pending message without one was not at fault: nothing is counted or written, and
	// the wait is forgotten if the lease goes to another instance.
	Err error
}

// ProcessedStore remembers which messages a consumer group has handled. All methods are safe for concurrent use.
//
// db is a transaction, the database handle that the store was made from, or nil, which means that handle.
type ProcessedStore interface {
	// IsProcessed tells whether the message was marked by the group.
	IsProcessed(ctx context.Context, db any, group, msgID string) (bool, error)

	// MarkProcessed records the message for the group; isNew is false where it was recorded before. While another
	// transaction has recorded the same message and not ended, it waits for that end. metadata is nil or valid JSON.
	MarkProcessed(ctx context.Context, db any, group, msgID string, metadata json.RawMessage) (isNew bool, err error)

	// PurgeProcessedBefore deletes what was recorded strictly before t and returns how many.
	PurgeProcessedBefore(ctx context.Context, db any, t time.Time) (int64, error)
}

// Transactor is a [Store] or a [ProcessedStore] that can begin transactions.
type Transactor interface {
	// RunInTx calls fn with a transaction, which the ctx of fn carries too, as by [ContextWithTx]. It commits when fn
	// returns nil and rolls back when fn returns an error or panics. Begin, commit and rollback do not depend on the
	// cancellation of ctx; within a transaction that ctx carries already, RunInTx still begins one of its own.
	RunInTx(ctx context.Context, fn func(ctx context.Context, tx any) error) error
}

// Notifier is a [Store] that notices new messages sooner than polling would.
type Notifier interface {
	// Notify calls wake whenever there may be something new, until ctx ends. It returns early, with an error, where it
	// cannot notice; the [Forwarder] then relies on polling and tries again later.
	Notify(ctx context.Context, wake func()) error
}

// TermReporter is a [LeasedStore] that tells by two numbers, where Owned has to look at the claim.
type TermReporter interface {
	// LeaseTerm returns the current term, which is another one as soon as any lease was lost or given up, and when the
	// first of the leases ends by the local monotonic clock. While the term is what it was before a Claim, and has not
	// ended, Owned is true of all that was claimed and not settled or released. It is as safe and as quick as reading two
	// atomic variables.
	LeaseTerm() (term int64, ends time.Time)
}

// Leader is a [LeasedStore] that several instances share. What one of them is to do for all, which is the deletion of old
// messages, is done by the one that leads.
type Leader interface {
	// Leads tells whether this instance leads. It does not block.
	Leads() bool
}

// SchemaChecker is a [Store] that can tell whether its tables are there.
type SchemaChecker interface {
	// CheckSchema returns an error that wraps [ErrNotMigrated] if a table or a column is missing.
	CheckSchema(ctx context.Context) error
}

// TopicPauser is a [LeasedStore] that can leave topics out, so that the backlog of a topic that is down does not come
// in the way of others. Without it the [Forwarder] puts such messages off one at a time.
type TopicPauser interface {
	// PauseTopics replaces the set of topics whose messages Claim leaves out, together with those behind them in their
	// keys. It does not block.
	PauseTopics(topics ...string)
}

// Inspector is a [Store] that can list and mend messages that were set aside.
type Inspector interface {
	// ListFailed returns up to limit set-aside messages with ids above afterID ("" for the first page), by id.
	ListFailed(ctx context.Context, afterID string, limit int) ([]Message, error)
	// CountFailed returns the number of set-aside messages.
	CountFailed(ctx context.Context) (int64, error)
	// Requeue makes set-aside messages pending again, with their retries at zero. Each gets a new id, so it goes
	// behind what its key has pending. It returns how many of the ids were found.
	Requeue(ctx context.Context, ids ...string) (int64, error)
	// Discard deletes set-aside messages for good and returns how many of the ids were found.
	Discard(ctx context.Context, ids ...string) (int64, error)
}

// StatsReporter is a [Store] that tells how much there is to do.
type StatsReporter interface {
	Stats(ctx context.Context) (Stats, error)
}

// Stats is a snapshot of an outbox.
type Stats struct {
	// Pending is the number of messages that are not published yet, claimed and delayed ones included.
	Pending int64
	// OldestAge is how long the oldest of them that is due has been due, by the database's clock; one that has failed
	// counts from when it was saved. Zero if none is due.
	OldestAge time.Duration
	// Failed is the number of messages that were set aside.
	Failed int64
	// PendingByTopic is Pending for each topic that has any.
	PendingByTopic map[string]int64
}
