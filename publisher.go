package outbox

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"
	"weak"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/components/delay"
	"github.com/ThreeDotsLabs/watermill/message"
)

const (
	// MaxTopicLength is the longest topic in bytes.
	MaxTopicLength = 255
	// MaxKeyLength is the longest key in bytes.
	MaxKeyLength = 512
)

// Publisher is a message.Publisher that writes messages to an outbox, within the transaction that each message's
// context carries ([ContextWithTx]) or that the Publisher was bound to ([Publisher.WithTx]). It is safe for concurrent
// use; calls on the same transaction wait for each other.
//
// Publish is all or nothing, in one round trip: when it returns an error, nothing of that call is in the transaction.
// After the commit a [Forwarder] publishes the messages to the broker.
type Publisher struct {
	store    Store
	name     string
	key      func(topic string, msg *message.Message) (string, error)
	total    bool
	required bool
	ownTx    bool
	bound    bool // to tx
	tx       any
	observer Observer
	err      error // of an option, for publishers whose constructor cannot return it
}

var _ message.Publisher = (*Publisher)(nil)

// PublisherOption configures a [Publisher].
type PublisherOption interface{ applyPublisher(p *Publisher) }

type publisherOption func(*Publisher)

func (f publisherOption) applyPublisher(p *Publisher) { f(p) }

// WithKeyFunc sets how the key is found of a message on which [SetKey] was not called. Users of Kafka have such a
// function already, as the partition key function of their marshaler. An empty key means no order; an error fails the
// Publish call.
func WithKeyFunc(key func(topic string, msg *message.Message) (string, error)) PublisherOption {
	return publisherOption(func(p *Publisher) {
		if key == nil {
			p.err = errors.Join(p.err, errors.New("WithKeyFunc: the function is nil"))
			return
		}
		p.key = key
	})
}

// WithTotalOrder gives all messages without a key one common key, so that they are published in the order of their
// commits, one at a time. Keys are the faster way to keep order where order matters.
func WithTotalOrder() PublisherOption { return publisherOption(func(p *Publisher) { p.total = true }) }

// WithKeyRequired makes Publish return [ErrNoKey] for a message without a key, for teams that rely on order everywhere:
// a forgotten key is found in the first test, and not when two messages change places.
func WithKeyRequired() PublisherOption {
	return publisherOption(func(p *Publisher) { p.required = true })
}

// WithOwnTx makes Publish save messages that carry no transaction in one of their own, instead of returning
// [ErrNoTx]. It is meant for code outside of any transaction: Watermill's PoisonQueue and Requeuer, a script. Elsewhere
// it hides the mistake that an outbox exists to prevent.
func WithOwnTx() PublisherOption { return publisherOption(func(p *Publisher) { p.ownTx = true }) }

// NewPublisher returns a Publisher that writes to store.
func NewPublisher(store Store, opts ...PublisherOption) (*Publisher, error) {
	p := newPublisher(store, opts)
	if p.err != nil {
		return nil, p.err
	}
	p.name = "outbox.Publisher." + strconv.FormatUint(publisherCount.Add(1), 10)
	publishers.Store(p.name, weak.Make(p))
	runtime.AddCleanup(p, func(name string) { publishers.Delete(name) }, p.name)
	return p, nil
}

func newPublisher(store Store, opts []PublisherOption) *Publisher {
	p := &Publisher{
		store:    store,
		name:     "outbox.Publisher",
		key:      func(string, *message.Message) (string, error) { return "", nil },
		observer: nopObserver{},
	}
	switch {
	case isNil(store):
		p.err = errors.New("the store is nil")
	case !isComparable(store):
		p.err = fmt.Errorf("the store is a %T, which cannot be a context key; pass a pointer", store)
	}
	for _, opt := range opts {
		if isNil(opt) {
			p.err = errors.Join(p.err, errors.New("an option is nil"))
			continue
		}
		opt.applyPublisher(p)
	}
	if isNil(p.observer) {
		p.err = errors.Join(p.err, errors.New("the observer is nil"))
	}
	if p.err != nil {
		p.err = fmt.Errorf("outbox: publisher: %w", p.err)
	}
	return p
}

// WithTx returns a Publisher like p whose messages are all written in tx, whatever their contexts carry.
func (p *Publisher) WithTx(tx any) *Publisher {
	bound := *p
	bound.bound, bound.tx = true, tx
	return &bound
}

// PublisherWithTx is [NewPublisher] and [Publisher.WithTx] in one expression, for the typed Publisher methods of
// stores: an error of an option is returned by Publish.
func PublisherWithTx(store Store, tx any, opts ...PublisherOption) *Publisher {
	return newPublisher(store, opts).WithTx(tx)
}

// String returns a name that no other Publisher made by [NewPublisher] has. Watermill's router puts it in the context
// of messages as the publisher's name, by which a [Deduplicator] finds the Publisher of the handler it wraps.
func (p *Publisher) String() string { return p.name }

var (
	publisherCount atomic.Uint64
	publishers     sync.Map // name → weak.Pointer[Publisher]; an entry goes with its publisher
)

func publisherNamed(name string) *Publisher {
	entry, ok := publishers.Load(name)
	if !ok {
		return nil
	}
	return entry.(weak.Pointer[Publisher]).Value() //nolint:forcetypeassert // the map holds nothing else
}

// Publish writes msgs to the outbox. It returns [ErrNoTx] if they carry no transaction; an error that wraps
// [ErrInvalidTx] for something that is no transaction of the store, [ErrInvalidMessage] for a message that cannot be
// stored and for messages of one call that carry different transactions, [ErrNoKey] for a missing key (with
// [WithKeyRequired]), or the error of the key function; and the context's error for one that has ended. It does not
// change the messages. Publishing no messages does nothing.
func (p *Publisher) Publish(topic string, msgs ...*message.Message) error {
	if p.err != nil {
		return p.err
	}
	if len(msgs) == 0 {
		return nil
	}
	tx, err := p.txOf(msgs)
	if err != nil {
		return err
	}
	rows := make([]Message, len(msgs))
	for i, msg := range msgs {
		if rows[i], err = p.row(topic, msg); err != nil {
			return fmt.Errorf("outbox: publish to %q: message %d of %d: %w", topic, i+1, len(msgs), err)
		}
	}
	ctx := msgs[0].Context()
	_, unobserved := p.observer.(nopObserver)
	var begun time.Time
	if !unobserved {
		begun = time.Now()
	}
	if err := p.save(ctx, tx, rows); err != nil {
		return fmt.Errorf("outbox: publish to %q: %w", topic, err)
	}
	if !unobserved {
		tell(ctx, p.observer, SavedEvent{Topic: topic, Messages: rows, Duration: time.Since(begun)}, defaultLogger())
	}
	return nil
}

func (p *Publisher) save(ctx context.Context, tx any, rows []Message) error {
	if tx != nil && isComparable(tx) { // nil is WithOwnTx, and no transaction in the context
		lock := publishing.lock(tx)
		defer publishing.unlock(tx, lock)
	}
	return p.store.Save(ctx, tx, rows...)
}

// txOf returns the transaction that all msgs carry, or nil if they carry none and need none.
func (p *Publisher) txOf(msgs []*message.Message) (any, error) {
	var common any
	for i, msg := range msgs {
		if msg == nil {
			return nil, fmt.Errorf("outbox: message %d of %d is nil: %w", i+1, len(msgs), ErrInvalidMessage)
		}
		if err := msg.Context().Err(); err != nil {
			return nil, fmt.Errorf("outbox: message %d of %d: its context has ended: %w", i+1, len(msgs), err)
		}
		tx := p.tx
		if !p.bound {
			tx, _ = TxFromContext(msg.Context(), p.store)
		}
		if i > 0 && !sameTx(tx, common) {
			return nil, fmt.Errorf("outbox: the messages of one Publish call carry different transactions, the first and "+
				"number %d; publish them in separate calls: %w", i+1, ErrInvalidMessage)
		}
		common = tx
	}
	switch {
	case common == nil && p.ownTx && !p.bound:
		return nil, nil //nolint:nilnil // no transaction, and no error
	case common == nil:
		return nil, ErrNoTx
	case isNil(common):
		return nil, fmt.Errorf("outbox: the transaction is a nil %T; did Begin return an error? %w", common, ErrInvalidTx)
	}
	return common, nil
}

func sameTx(a, b any) bool {
	if a == nil || b == nil {
		return a == b
	}
	return isComparable(a) && isComparable(b) && a == b
}

// row makes the outbox row of msg. The metadata of delays and of the key become columns.
func (p *Publisher) row(topic string, msg *message.Message) (Message, error) {
	key, err := p.keyOf(topic, msg)
	if err != nil {
		return Message{}, fmt.Errorf("its key: %w", err)
	}
	due, err := availableAt(topic, msg)
	if err != nil {
		return Message{}, fmt.Errorf("its delay: %w: %w", err, ErrInvalidMessage)
	}
	headers, err := headersOf(msg)
	if err != nil {
		return Message{}, err
	}
	row := Message{UUID: msg.UUID, Topic: topic, Key: key, Payload: msg.Payload, AvailableAt: due, Headers: headers}
	if row.UUID == "" {
		row.UUID = watermill.NewUUID()
	}
	return row, row.validate()
}

// headersOf returns a copy of the metadata without what has columns of its own.
func headersOf(msg *message.Message) (map[string]string, error) {
	if len(msg.Metadata) == 0 {
		return nil, nil //nolint:nilnil // no headers, and no error
	}
	headers := make(map[string]string, len(msg.Metadata))
	for k, v := range msg.Metadata {
		switch k {
		case keyMetadata, delay.DelayedForKey, delay.DelayedUntilKey:
			continue
		}
		if !utf8.ValidString(k) || !utf8.ValidString(v) {
			return nil, invalid("metadata %q is not valid UTF-8; put binary data in the payload", k)
		}
		headers[k] = v
	}
	return headers, nil
}

func (p *Publisher) keyOf(topic string, msg *message.Message) (string, error) {
	key := Key(msg)
	if key == "" {
		var err error
		if key, err = p.key(topic, msg); err != nil {
			return "", err
		}
	}
	switch {
	case key == "" && p.total:
		return totalOrderKey, nil
	case key == "" && p.required:
		return "", ErrNoKey
	}
	return key, nil
}

const (
	maxUUIDLength    = 512       // an index holds it
	maxPayloadLength = 256 << 20 // PostgreSQL reads no more than twice that as text
)

// validate refuses what some database or broker could not give back as it was.
func (m *Message) validate() error {
	switch {
	case m.Topic == "":
		return invalid("the topic is empty")
	case len(m.Topic) > MaxTopicLength:
		return invalid("the topic has %d bytes, more than %d", len(m.Topic), MaxTopicLength)
	case len(m.UUID) > maxUUIDLength:
		return invalid("the UUID has %d bytes, more than %d", len(m.UUID), maxUUIDLength)
	case len(m.Payload) > maxPayloadLength:
		return invalid("the payload has %d bytes, more than %d", len(m.Payload), maxPayloadLength)
	case len(m.Key) > MaxKeyLength:
		return invalid("the key has %d bytes, more than %d", len(m.Key), MaxKeyLength)
	}
	for i, s := range [...]string{m.Topic, m.Key, m.UUID} {
		if !utf8.ValidString(s) || strings.IndexByte(s, 0) >= 0 {
			return invalid("the %s is not valid UTF-8 without NUL", [...]string{"topic", "key", "UUID"}[i])
		}
	}
	return nil
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, ErrInvalidMessage)...)
}

// Close does nothing: the publisher holds nothing of its own, and a router closes the publisher of a handler whenever
// that handler ends.
func (p *Publisher) Close() error { return nil }
