package outbox

import "errors"

var (
	// ErrNoTx is returned by Publish for a message that carries no transaction. Use the store's Publisher(tx) or
	// ContextWithTx, or make the publisher [WithOwnTx] if the message need not commit together with anything.
	ErrNoTx = errors.New("outbox: message carries no transaction: publish with store.Publisher(tx), or call " +
		"msg.SetContext(store.ContextWithTx(ctx, tx)) first, or make the publisher with outbox.WithOwnTx()")

	// ErrNoKey is wrapped by the error of a publisher made [WithKeyRequired] for a message without a key.
	ErrNoKey = errors.New("the message has no key, and would have no order: call outbox.SetKey(msg, key) with the id of " +
		"what it is about, or make the publisher with outbox.WithKeyFunc")

	// ErrInvalidTx is wrapped by the error for something that is not a transaction of the store's database: a *sql.DB
	// (which would commit each statement by itself), a typed nil, or a transaction of another driver.
	ErrInvalidTx = errors.New("not a transaction this store can write in")

	// ErrInvalidMessage is wrapped by the error for a message that cannot be stored as it is. Nothing of its Publish
	// call was written.
	ErrInvalidMessage = errors.New("invalid message")

	// ErrNotMigrated is wrapped when a table or a column that the store needs is missing.
	ErrNotMigrated = errors.New("the outbox schema is missing or older than this release: call store.Migrate(ctx) or " +
		"migrations.Up, or apply what migrations.SQL returns with your own tool")

	// ErrNoLease is returned by Claim while other relay instances hold all slots. It is no failure: the caller stands by
	// and asks again.
	ErrNoLease = errors.New("outbox: other relay instances hold the leases")

	// ErrNotClaimed is wrapped when an outcome is given for a message that this store does not hold a claim on.
	ErrNotClaimed = errors.New("message is not claimed by this store: it was settled or released already")

	// ErrClosed is returned by a [Forwarder] or a [Store] that was closed.
	ErrClosed = errors.New("outbox: closed")

	// ErrAlreadyRunning is returned by Run and Drain of a [Forwarder] while it, or another Forwarder over the same store
	// value, is running. One Forwarder per store is enough: raise [WithConcurrency].
	ErrAlreadyRunning = errors.New("outbox: a Forwarder is running over this store already; one is enough, raise its " +
		"concurrency with outbox.WithConcurrency instead")

	// ErrCloseTimeout is wrapped by the error of Run and Close when publishes were still in flight at the end of the
	// close timeout. Their messages stay in the outbox and are published again.
	ErrCloseTimeout = errors.New("close timeout exceeded")
)
