package outbox

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
)

// Deduplicator makes handlers of a Watermill router idempotent: its Middleware calls the handler once for each message
// id and group, however often the broker delivers the message. It is safe for concurrent use; one serves all handlers
// of a router.
//
// Each message is recorded in the same transaction as the handler's writes and the messages that it returns, so all of
// them come about once or not at all. In the handler, take the transaction from the message's context:
// store.TxFromContext(msg.Context()), and do not end it: with a commit of the handler's own the message counts as handled,
// and what the handler returns is lost. The transaction is always one of the Deduplicator's own; a transaction that a
// subscriber may have put into the context is not used. What a handler sends through the outbox goes out after the
// commit, so it must not wait for a reply to that (components/requestreply).
//
// # Order of middleware
//
// Of Watermill's middleware these go outside of it, outermost first: PoisonQueue, DelayOnError, Retry with
// ResetContextOnRetry, CircuitBreaker, Recoverer, IgnoreErrors; and these inside: Timeout, CorrelationID, and whatever
// else changes the returned messages. What retries an attempt or gives it up must come after the rollback, what changes
// messages before they are saved.
//
// Of the wrong orders it refuses these, with an error that names the cure: PoisonQueue inside, which would have half an
// effect committed; a context that has ended before the handler begins, as Timeout outside leaves it to a second
// attempt; and two Deduplicators of one group around one handler, which would wait for each other for ever. It logs,
// once for each handler, that a message was acknowledged before the commit (by InstantAck, or the handler), so that a
// failure would lose it, and that a returned message lacks the correlation id of the incoming one (CorrelationID
// outside).
//
// These it cannot see: Retry and Duplicator inside run the handler several times in one transaction, so that the writes
// of a failed attempt commit together with those of a good one; IgnoreErrors inside commits what was written before the
// error, unless the handler calls [SetRollback].
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
//
// A handler that nacks its message wants it again: that rolls back, like an error.
func (d *Deduplicator) Middleware(h message.HandlerFunc) message.HandlerFunc {
	w := &deduplicated{Deduplicator: d, next: h}
	return w.handle
}

// deduplicated is one handler under a Deduplicator, and what has been said about its middleware.
type deduplicated struct {
	*Deduplicator
	next message.HandlerFunc

	toldOfDeadline, toldOfAck, toldOfCorrelation sync.Once
}

// delivery is a message on its way through a handler, which finds it in the message's context.
type delivery struct {
	msg       *message.Message
	group, id string
	original  context.Context //nolint:containedctx // what the message came with, and gets back
	outer     *delivery       // the one that the handler of another Deduplicator is working on; nil for most
	reason    string          // why the message was poisoned before it came here; empty for most
	rollback  atomic.Bool
}

type deliveryKey struct{}

func deliveryFrom(ctx context.Context) *delivery {
	dl, _ := ctx.Value(deliveryKey{}).(*delivery)
	return dl
}

func (w *deduplicated) handle(msg *message.Message) ([]*message.Message, error) {
	original := msg.Context()
	defer msg.SetContext(original) // an outer Retry must not see a transaction that has ended

	dl, err := w.arrive(original, msg)
	if err != nil {
		return nil, err
	}
	handle := w.handleInTx
	if w.outside {
		handle = w.handleOutside
	}
	isNew, err := handle(dl)
	if errors.Is(err, errNacked) { // rolled back; a Retry would try in vain, a PoisonQueue give up what comes again
		return nil, nil
	}
	if err == nil && !isNew {
		topic := message.SubscribeTopicFromCtx(original)
		tell(original, w.observer, DeduplicatedEvent{Group: dl.group, MessageID: dl.id, Topic: topic}, w.logger)
		w.logger.Debug("Message was handled before", watermill.LogFields{
			"message_uuid": msg.UUID, "topic": topic, "handler_name": message.HandlerNameFromCtx(original),
		})
	}
	return nil, err
}

// arrive looks at the message, and at the middleware that it has come through.
func (w *deduplicated) arrive(original context.Context, msg *message.Message) (*delivery, error) {
	if err := original.Err(); err != nil {
		if _, limited := original.Deadline(); limited { // routers do not log that a context was cancelled
			w.toldOfDeadline.Do(func() {
				w.logger.Error("Middleware is in the wrong order", errEnded, handlerField(original))
			})
		}
		return nil, fmt.Errorf("%w: %w", errEnded, err)
	}
	dl := &delivery{
		msg: msg, group: w.group, original: original, outer: deliveryFrom(original),
		reason: msg.Metadata[poisonReason],
	}
	if name := message.HandlerNameFromCtx(original); name != "" {
		dl.group += "/" + name
	}
	for outer := dl.outer; outer != nil; outer = outer.outer {
		if outer.msg == msg && outer.group == dl.group {
			return nil, fmt.Errorf("outbox: two Deduplicators around one handler record the message under %q, and the inner "+
				"one would wait for the outer one for ever; the router's middleware is around each handler's own: leave one "+
				"out, or give them different groups", dl.group)
		}
	}
	var err error
	if dl.id, err = w.id(msg); err != nil {
		return nil, fmt.Errorf("outbox: id of the message: %w", err)
	}
	if dl.id == "" {
		return nil, fmt.Errorf("outbox: the message has no UUID to deduplicate on; set one where it is published, or "+
			"use outbox.WithMessageID: %w", ErrInvalidMessage)
	}
	return dl, nil
}

var (
	errSeenBefore = errors.New("seen before")
	errRollback   = errors.New("outbox: the handler asked for a rollback (outbox.SetRollback)")
	errNacked     = errors.New("outbox: the message was nacked, so that it comes again, and counts as not handled")
	errEnded      = errors.New("outbox: the message's context has ended before the handler began; unless the router or " +
		"its subscriber is closing, put middleware.Timeout inside of the Deduplicator and set ResetContextOnRetry of " +
		"middleware.Retry")
)

// poisonReason is middleware.ReasonForPoisonedKey, by which a PoisonQueue marks a message whose error it swallows. One
// that fails for the very reason that it came with is not noticed.
const poisonReason = "reason_poisoned"

// call runs the handler. What it has done may be committed if there is no error.
func (w *deduplicated) call(ctx context.Context, dl *delivery) ([]*message.Message, error) {
	dl.msg.SetContext(context.WithValue(ctx, deliveryKey{}, dl))
	produced, err := w.next(dl.msg)
	if isClosed(dl.msg.Acked()) {
		w.toldOfAck.Do(func() {
			w.logger.Error("A message was acknowledged before its transaction committed, and is lost if that fails: leave out "+
				"middleware.InstantAck, and do not call Ack in the handler", nil, handlerField(dl.original))
		})
	}
	reason := dl.msg.Metadata[poisonReason]
	poisoned := reason != dl.reason
	if poisoned { // the next attempt must not look like a message from a poison topic
		delete(dl.msg.Metadata, poisonReason)
	}
	switch {
	case err != nil:
		return nil, err
	case dl.rollback.Load():
		return nil, errRollback
	case isClosed(dl.msg.Nacked()):
		return nil, errNacked
	case poisoned:
		return nil, fmt.Errorf("outbox: middleware.PoisonQueue is inside of the Deduplicator and has swallowed the "+
			"handler's error, so that half an effect would be recorded as handled; put it outside (the error: %s)", reason)
	}
	return produced, nil
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func handlerField(ctx context.Context) watermill.LogFields {
	return watermill.LogFields{"handler_name": message.HandlerNameFromCtx(ctx)}
}

// handleInTx marks first, which makes a concurrent redelivery wait, then runs the handler; all of it commits or none.
func (w *deduplicated) handleInTx(dl *delivery) (isNew bool, err error) {
	err = w.tx.RunInTx(dl.original, func(ctx context.Context, tx any) error {
		isNew, err := w.store.MarkProcessed(ctx, tx, dl.group, dl.id, nil)
		if err != nil {
			return err
		}
		if !isNew {
			return errSeenBefore // roll back: there is nothing to commit
		}
		produced, err := w.call(ctx, dl)
		if err != nil {
			return err
		}
		if len(produced) > 0 {
			if err := w.checkTx(ctx, tx, dl); err != nil {
				return err
			}
		}
		return w.saveProduced(ctx, dl, produced)
	})
	if errors.Is(err, errSeenBefore) {
		return false, nil
	}
	return true, err
}

// checkTx returns an error if the transaction is no longer there: SQLite rolls the whole of it back when a statement is
// interrupted because its context has ended. If the handler ignores that error, what is written next commits by itself.
func (w *deduplicated) checkTx(ctx context.Context, tx any, dl *delivery) error {
	ended := dl.original.Err()
	if err := dl.msg.Context().Err(); errors.Is(err, context.DeadlineExceeded) { // of a Timeout inside, which cancels when it is left
		ended = err
	}
	if ended == nil {
		return nil
	}
	marked, err := w.store.IsProcessed(context.WithoutCancel(ctx), tx, dl.group, dl.id)
	if err == nil && !marked {
		err = fmt.Errorf("outbox: the database has rolled back what the handler did, since a statement was interrupted, and "+
			"what it returned is not saved either: return the errors of statements in the handler (%w)", ended)
	}
	return err
}

// markTimeout is how long the mark of an effect elsewhere may take.
const markTimeout = 30 * time.Second

// handleOutside never marks before success: a crash then leads to a second run, not to none.
func (w *deduplicated) handleOutside(dl *delivery) (isNew bool, err error) {
	seen, err := w.store.IsProcessed(dl.original, nil, dl.group, dl.id)
	if err != nil || seen {
		return false, err
	}
	produced, err := w.call(dl.original, dl)
	if err != nil {
		return true, err
	}
	// The effect is there. A router that closes has cancelled the message's context, which is no reason to forget it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(dl.original), markTimeout)
	defer cancel()
	if w.tx == nil {
		if len(produced) > 0 {
			return true, fmt.Errorf("outbox: the handler returned messages, which a %T cannot save together with the mark "+
				"(outbox.Transactor)", w.store)
		}
		_, err := w.store.MarkProcessed(ctx, nil, dl.group, dl.id, nil)
		return true, err
	}
	err = w.tx.RunInTx(ctx, func(ctx context.Context, tx any) error {
		isNew, err := w.store.MarkProcessed(ctx, tx, dl.group, dl.id, nil)
		if err != nil {
			return err
		}
		if !isNew { // a concurrent delivery was faster, and has saved what it returned
			return errSeenBefore
		}
		return w.saveProduced(ctx, dl, produced)
	})
	if errors.Is(err, errSeenBefore) {
		return true, nil
	}
	return true, err
}

// saveProduced writes the messages that a handler returned into the outbox, within ctx's transaction: the router would
// publish them only after the commit, and a crash in between would lose them.
func (w *deduplicated) saveProduced(ctx context.Context, dl *delivery, produced []*message.Message) error {
	if len(produced) == 0 {
		return nil
	}
	topic := message.PublishTopicFromCtx(dl.original)
	if topic == "" {
		return fmt.Errorf("outbox: the handler returned messages and has no topic for them: it was added without a publisher "+
			"or with an empty topic, or is not called by a router: %w", message.ErrOutputInNoPublisherHandler)
	}
	name := message.PublisherNameFromCtx(dl.original)
	publisher := w.produced
	if publisher == nil {
		if p := publisherNamed(name); p != nil {
			publisher = p
		}
	}
	if publisher == nil {
		return fmt.Errorf("outbox: handler %q returned messages for a %s, which would publish them after the commit and "+
			"lose them in a crash; give router.AddHandler an *outbox.Publisher, or the Deduplicator "+
			"outbox.WithProducedPublisher", message.HandlerNameFromCtx(dl.original), name)
	}
	for _, m := range produced {
		if m == nil {
			return fmt.Errorf("outbox: the handler returned a nil message: %w", ErrInvalidMessage)
		}
		if m.Metadata[correlationID] == "" && dl.msg.Metadata[correlationID] != "" {
			w.toldOfCorrelation.Do(func() {
				w.logger.Info("A message that the handler returned is saved without the correlation id of the one it handled: "+
					"middleware.CorrelationID has no effect outside of the Deduplicator, put it inside", handlerField(dl.original))
			})
		}
		m.SetContext(withTxOf(m.Context(), ctx))
	}
	if err := publisher.Publish(topic, produced...); err != nil {
		if errors.Is(err, ErrNoTx) {
			return fmt.Errorf("outbox: the publisher of handler %q writes to another outbox than the Deduplicator: %w",
				message.HandlerNameFromCtx(dl.original), err)
		}
		return fmt.Errorf("outbox: save the messages that the handler returned: %w", err)
	}
	return nil
}

// correlationID is middleware.CorrelationIDMetadataKey.
const correlationID = "correlation_id"

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

// SetRollback, called in a handler with its message's context, rolls the transaction of the [Deduplicator] back even
// though the handler returns no error, and has the message redelivered. It is for errors that somebody inside swallows,
// such as the CQRS processors' AckCommandHandlingErrors. Elsewhere it does nothing.
func SetRollback(ctx context.Context) {
	if dl := deliveryFrom(ctx); dl != nil {
		dl.rollback.Store(true)
	}
}
