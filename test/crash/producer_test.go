package crash_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/watermill-outbox/outbox"
)

// transaction is what a producer does at once: Publish calls, each of some messages. A message is called by its key, if it
// has one, and its number in that.
type transaction struct {
	calls     [][]string
	rollsBack bool
}

// What is committed is 18 messages: with maxInFlight in a mark, at least three marks, of which two have neither the message
// that fails nor the one that is refused.
var transactions = []transaction{
	{calls: [][]string{{"a1"}}},
	{calls: [][]string{{"a2", "b1"}, {"c1"}}},
	{calls: [][]string{{"a3", "-5"}, {"b2"}}, rollsBack: true},
	{calls: [][]string{{"b2"}, {"c2", "-1"}}},
	{calls: [][]string{{"a3", "b3", "c3", refused}}},
	{calls: [][]string{{"b4"}, {"c4"}, {"a4"}}},
	{calls: [][]string{{"a5", "b5", "c5", "a6"}}},
}

const (
	failing = "a1" // fails for some time
	refused = "-2" // is refused for good
)

// newMessage makes one by its name.
func newMessage(id, name string) *message.Message {
	msg := message.NewMessage(id, []byte(name))
	if key := keyOf(name); key != "-" {
		outbox.SetKey(msg, key)
	}
	return msg
}

func keyOf(name string) string { return name[:1] }

var errChangedMyMind = errors.New("the customer has changed their mind")

// produce is a producer: it says of each transaction that it was committed, if it was.
func (j job) produce(ctx context.Context, db *database, t *trap) error {
	var opts []outbox.PublisherOption
	if j.Broken == publishesOutside {
		opts = append(opts, outbox.WithOwnTx())
	}
	publisher, err := outbox.NewPublisher(db.store, opts...)
	if err != nil {
		return err
	}
	for _, work := range transactions {
		err := db.store.RunInTx(ctx, func(ctx context.Context, tx any) error {
			for _, call := range work.calls {
				if err := j.order(ctx, tx, publisher, call); err != nil {
					return err
				}
			}
			if work.rollsBack {
				return errChangedMyMind
			}
			return nil
		})
		switch {
		case err == nil && t != nil:
			tell(saysCommitted, j.ids(slices.Concat(work.calls...))...)
		case err != nil && !errors.Is(err, errChangedMyMind):
			return err
		}
	}
	return nil
}

// order writes a row for each of the messages, and publishes them, in one transaction.
func (j job) order(ctx context.Context, tx any, publisher *outbox.Publisher, names []string) error {
	ids := j.ids(names)
	insert := "INSERT INTO orders (uuid) VALUES ('" + strings.Join(ids, "'), ('") + "')"
	if err := execIn(ctx, tx, insert); err != nil {
		return fmt.Errorf("%s: %w", insert, err)
	}
	var msgs []*message.Message
	for i, name := range names {
		msg := newMessage(ids[i], name)
		if j.Broken != publishesOutside {
			msg.SetContext(ctx)
		}
		msgs = append(msgs, msg)
	}
	return publisher.Publish("orders", msgs...)
}

func (j job) ids(names []string) (ids []string) {
	for _, name := range names {
		ids = append(ids, j.Run+name)
	}
	return ids
}
