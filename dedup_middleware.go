package outbox

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
)

// Deduplicator makes handlers of a Watermill router idempotent: its Middleware calls the handler once for each message
// id and group, however often the broker delivers the message. It is safe for concurrent use; one serves all handlers
// of a router.
//
// Each message is recorded in the same transaction as the handler's writes and the messages that it returns, so all of
// them come about once or not at all. In the handler, take the transaction from the message's context:
// store.TxFromContext(msg.Context()). The transaction is always one of the Deduplicator's own; a transaction that a
// subscriber may have put into the context is not used.
//
// Of Watermill's middleware these go outside of it, outermost first: PoisonQueue, Retry with ResetContextOnRetry,
// Recoverer; and these inside: Timeout, CorrelationID, and whatever else changes the returned messages.
type Deduplicator struct {
	store    ProcessedStore
	tx       Transactor // nil if the store has none
	group    string
	outside  bool
	id       func(*message.Message) (string, error)
	produced message.Publisher
	logger   watermill.LoggerAdapter
	observer Observer
	err      error
}

// DeduplicatorOption configures a [Deduplicator].
type DeduplicatorOption interface{ applyDeduplicator(d *Deduplicator) }

type deduplicatorOption func(*Deduplicator)

func (f deduplicatorOption) applyDeduplicator(d *Deduplicator) { f(d) }

// WithMessageID sets how the id of a message is found. The default is its UUID, which must not be empty. Use it where
// one event may reach the broker under several UUIDs, or where a producer leaves the UUID empty. Never hash the payload
// alone: two equal payments are two payments.
func WithMessageID(id func(msg *message.Message) (string, error)) DeduplicatorOption {
	return deduplicatorOption(func(d *Deduplicator) {
		if id == nil {
			d.err = errors.Join(d.err, errors.New("WithMessageID: the function is nil"))
			return
		}
		d.id = id
	})
}

// WithEffectElsewhere is for handlers whose effect is not in this database: a call to an API, a mail. The handler runs
// outside of any transaction; when it has succeeded, the message is recorded and what it returned is saved, in one
// transaction. A crash in between means that it runs again, so such an effect comes about at least once.
func WithEffectElsewhere() DeduplicatorOption {
	return deduplicatorOption(func(d *Deduplicator) { d.outside = true })
}

// WithProducedPublisher sets what writes the messages that handlers return: publisher is called with the transaction in
// their contexts. It must lead to an outbox [Publisher] over the same database, and may decorate it. Without this
// option handlers that return messages need a *Publisher as their router publisher; decorators that were added to the
// router (AddPublisherDecorators) do not see those messages then.
func WithProducedPublisher(publisher message.Publisher) DeduplicatorOption {
	return deduplicatorOption(func(d *Deduplicator) {
		if isNil(publisher) {
			d.err = errors.Join(d.err, errors.New("WithProducedPublisher: the publisher is nil"))
			return
		}
		d.produced = publisher
	})
}

// NewDeduplicator returns a Deduplicator that records messages in store under "<group>/<name of the handler>". The
// group names the service, without a slash: two services that share a database and consume the same topic need different
// ones.
func NewDeduplicator(store ProcessedStore, group string, opts ...DeduplicatorOption) (*Deduplicator, error) {
	d := &Deduplicator{
		store: store, group: group,
		id:       func(msg *message.Message) (string, error) { return msg.UUID, nil },
		logger:   defaultLogger(),
		observer: nopObserver{},
	}
	for _, opt := range opts {
		if isNil(opt) {
			d.err = errors.Join(d.err, errors.New("an option is nil"))
			continue
		}
		opt.applyDeduplicator(d)
	}
	d.err = errors.Join(d.err, notNil("Logger", d.logger), notNil("Observer", d.observer))
	if isNil(store) {
		d.err = errors.Join(d.err, errors.New("the store is nil; take it from Processed() of an outbox store"))
	} else if d.tx, _ = store.(Transactor); d.tx == nil && !d.outside {
		d.err = errors.Join(d.err, fmt.Errorf("a %T cannot begin transactions (outbox.Transactor), which effects once "+
			"need; with outbox.WithEffectElsewhere() handlers run at least once", store))
	}
	switch {
	case group == "":
		d.err = errors.Join(d.err, errors.New("the group is empty; name the service, as in a Kafka consumer group"))
	case strings.Contains(group, "/"):
		d.err = errors.Join(d.err, fmt.Errorf("the group %q contains a slash, which separates it from the handler's name", group))
	}
	if d.err != nil {
		return nil, fmt.Errorf("outbox: deduplicator: %w", d.err)
	}
	return d, nil
}

// Middleware is a message.HandlerMiddleware: pass it to router.AddMiddleware or to a handler's. See [Deduplicator] for
// its place among others. It knows the handler, its topic and its publisher by what the router puts into the context of
// messages; called without a router, it records under the group alone, and the handler cannot return messages.
func (d *Deduplicator) Middleware(h message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) ([]*message.Message, error) {
		original := msg.Context()
		defer msg.SetContext(original) // an outer Retry must not see a transaction that has ended

		group := d.group
		if name := message.HandlerNameFromCtx(original); name != "" {
			group += "/" + name
		}
		id, err := d.id(msg)
		if err != nil {
			return nil, fmt.Errorf("outbox: id of the message: %w", err)
		}
		if id == "" {
			return nil, fmt.Errorf("outbox: the message has no UUID to deduplicate on; set one where it is published, or "+
				"use outbox.WithMessageID: %w", ErrInvalidMessage)
		}
		handle := d.handleInTx
		if d.outside {
			handle = d.handleOutside
		}
		isNew, err := handle(original, msg, h, group, id)
		if err == nil && !isNew {
			topic := message.SubscribeTopicFromCtx(original)
			d.observer.Observe(original, DeduplicatedEvent{Group: group, MessageID: id, Topic: topic})
			d.logger.Debug("Message was handled before", watermill.LogFields{
				"message_uuid": msg.UUID, "topic": topic, "handler_name": message.HandlerNameFromCtx(original),
			})
		}
		return nil, err
	}
}

var (
	errSeenBefore = errors.New("seen before")
	errRollback   = errors.New("outbox: the handler asked for a rollback (outbox.SetRollback)")
)

// handleInTx marks first, which makes a concurrent redelivery wait, then runs the handler; all of it commits or none.
func (d *Deduplicator) handleInTx(
	original context.Context, msg *message.Message, h message.HandlerFunc, group, id string,
) (isNew bool, err error) {
	err = d.tx.RunInTx(original, func(ctx context.Context, tx any) error {
		isNew, err := d.store.MarkProcessed(ctx, tx, group, id, nil)
		if err != nil {
			return err
		}
		if !isNew {
			return errSeenBefore // roll back: there is nothing to commit
		}
		rollback := &atomic.Bool{}
		msg.SetContext(context.WithValue(ctx, rollbackKey{}, rollback))
		produced, err := h(msg)
		if err != nil {
			return err
		}
		if rollback.Load() {
			return errRollback
		}
		return d.saveProduced(ctx, original, produced)
	})
	if errors.Is(err, errSeenBefore) {
		return false, nil
	}
	return true, err
}

// handleOutside never marks before success: a crash then leads to a second run, not to none.
func (d *Deduplicator) handleOutside(
	original context.Context, msg *message.Message, h message.HandlerFunc, group, id string,
) (isNew bool, err error) {
	seen, err := d.store.IsProcessed(original, nil, group, id)
	if err != nil {
		return false, err
	}
	if seen {
		return false, nil
	}
	rollback := &atomic.Bool{}
	msg.SetContext(context.WithValue(original, rollbackKey{}, rollback))
	produced, err := h(msg)
	if err != nil {
		return true, err
	}
	if rollback.Load() {
		return true, errRollback
	}
	if d.tx == nil {
		if len(produced) > 0 {
			return true, fmt.Errorf("outbox: the handler returned messages, which a %T cannot save together with the mark "+
				"(outbox.Transactor)", d.store)
		}
		_, err := d.store.MarkProcessed(original, nil, group, id, nil)
		return true, err
	}
	err = d.tx.RunInTx(original, func(ctx context.Context, tx any) error {
		isNew, err := d.store.MarkProcessed(ctx, tx, group, id, nil)
		if err != nil {
			return err
		}
		if !isNew { // a concurrent delivery was faster, and has saved what it returned
			return errSeenBefore
		}
		return d.saveProduced(ctx, original, produced)
	})
	if errors.Is(err, errSeenBefore) {
		return true, nil
	}
	return true, err
}

// saveProduced writes the messages that a handler returned into the outbox, within ctx's transaction: the router would
// publish them only after the commit, and a crash in between would lose them.
func (d *Deduplicator) saveProduced(ctx, original context.Context, produced []*message.Message) error {
	if len(produced) == 0 {
		return nil
	}
	topic := message.PublishTopicFromCtx(original)
	if topic == "" {
		return message.ErrOutputInNoPublisherHandler
	}
	name := message.PublisherNameFromCtx(original)
	publisher := d.produced
	if publisher == nil {
		if p := publisherNamed(name); p != nil {
			publisher = p
		}
	}
	if publisher == nil {
		return fmt.Errorf("outbox: handler %q returned messages for a %s, which would publish them after the commit and "+
			"lose them in a crash; give router.AddHandler an *outbox.Publisher, or the Deduplicator "+
			"outbox.WithProducedPublisher", message.HandlerNameFromCtx(original), name)
	}
	for _, m := range produced {
		if m == nil {
			return fmt.Errorf("outbox: the handler returned a nil message: %w", ErrInvalidMessage)
		}
		m.SetContext(withTxOf(m.Context(), ctx))
	}
	if err := publisher.Publish(topic, produced...); err != nil {
		if errors.Is(err, ErrNoTx) {
			return fmt.Errorf("outbox: the publisher of handler %q writes to another outbox than the Deduplicator: %w",
				message.HandlerNameFromCtx(original), err)
		}
		return fmt.Errorf("outbox: save the messages that the handler returned: %w", err)
	}
	return nil
}

// withTxOf returns a context with the values of both, those of own first (a delay, a trace), and neither's
// cancellation.
func withTxOf(own, tx context.Context) context.Context {
	return mergedContext{Context: context.WithoutCancel(own), tx: tx}
}

type mergedContext struct {
	context.Context //nolint:containedctx // a context of two contexts
	tx              context.Context
}

func (c mergedContext) Value(key any) any {
	if _, isTx := key.(txKey); !isTx {
		if v := c.Context.Value(key); v != nil {
			return v
		}
	}
	return c.tx.Value(key)
}

type rollbackKey struct{}

// SetRollback, called in a handler with its message's context, rolls the transaction of the [Deduplicator] back even
// though the handler returns no error, and has the message redelivered. It is for errors that somebody inside swallows,
// such as the CQRS processors' AckCommandHandlingErrors. Elsewhere it does nothing.
func SetRollback(ctx context.Context) {
	if rollback, ok := ctx.Value(rollbackKey{}).(*atomic.Bool); ok {
		rollback.Store(true)
	}
}
