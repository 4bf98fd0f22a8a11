package crash_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/watermill-outbox/outbox"
)

// inputs are the messages that a consumer handles, each of which has it publish one of the same name.
var inputs = []string{"a1", "b1", "c1", "a2", "b2", "c2"}

const (
	inputPrefix = "input-"
	group       = "billing"
	handlerName = "bill"
	// handledLate fails the first time, after its handler has written.
	handledLate = "b1"
)

// consume handles all inputs that were not acknowledged before. It is a message.Subscriber itself, of a broker that
// delivers one message after another, each until it is acknowledged.
func (j job) consume(ctx context.Context, db *database, t *trap) error {
	publisher, err := outbox.NewPublisher(db.store)
	if err != nil {
		return err
	}
	dedup, err := outbox.NewDeduplicator(db.processed, group, outbox.WithLogger(watermill.NopLogger{}))
	if err != nil {
		return err
	}
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	if err != nil {
		return err
	}
	c := &consumer{job: j, db: db, trap: t}
	middleware := dedup.Middleware
	if j.Broken == recordsFirst {
		middleware = c.recordFirst
	}
	router.AddHandler(handlerName, "inputs", c, "outputs", publisher, c.handle).AddMiddleware(c.beforeAck, middleware)
	return errors.Join(router.Run(ctx), c.err) // it ends when the subscription does
}

type consumer struct {
	job

	db     *database
	trap   *trap
	failed atomic.Bool
	err    error // of the subscription, once it has ended
}

func (c *consumer) handle(msg *message.Message) ([]*message.Message, error) {
	name := string(msg.Payload)
	tx, ok := outbox.TxFromContext(msg.Context(), c.db.store)
	if !ok {
		return nil, errors.New("the handler has no transaction")
	}
	id := c.ids([]string{name})[0]
	if err := execIn(msg.Context(), tx, "INSERT INTO effects (input, uuid) VALUES ('"+msg.UUID+"', '"+id+"')"); err != nil {
		return nil, err
	}
	if c.trap != nil && name == handledLate && !c.failed.Swap(true) {
		return nil, errors.New("the printer has no paper")
	}
	c.trap.at("after the handler")
	return []*message.Message{newMessage(id, name)}, nil
}

func (c *consumer) beforeAck(next message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) ([]*message.Message, error) {
		produced, err := next(msg)
		if err == nil {
			c.trap.at("before the ack")
		}
		return produced, err
	}
}

func (c *consumer) ackedFile() string { return filepath.Join(c.Folder, "acked-"+c.Run+".log") }

func (c *consumer) Subscribe(ctx context.Context, _ string) (<-chan *message.Message, error) {
	file, err := os.OpenFile(c.ackedFile(), os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(c.ackedFile())
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	deliveries := make(chan *message.Message)
	go func() { // ends when all inputs are acknowledged, or with ctx
		defer close(deliveries)
		for _, name := range inputs {
			if slices.Contains(strings.Fields(string(text)), name) || !c.deliver(ctx, name, deliveries) {
				continue
			}
			c.trap.at("after the ack")
			if _, err := fmt.Fprintln(file, name); err != nil {
				c.err = errors.Join(c.err, err)
			}
		}
		c.err = errors.Join(c.err, ctx.Err(), file.Close())
	}()
	return deliveries, nil
}

// deliver delivers a message until it is acknowledged, or ctx ends.
func (c *consumer) deliver(ctx context.Context, name string, to chan<- *message.Message) (acked bool) {
	for ctx.Err() == nil {
		msg := newMessage(inputPrefix+c.Run+name, name)
		select {
		case to <- msg:
		case <-ctx.Done():
			return false
		}
		select {
		case <-msg.Acked():
			return true
		case <-msg.Nacked():
		case <-ctx.Done():
			return false
		}
	}
	return false
}

func (c *consumer) Close() error { return nil }
