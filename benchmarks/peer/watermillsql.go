package peer

import (
	"context"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/components/forwarder"
	"github.com/ThreeDotsLabs/watermill/message"
)

// fastPoll is the PollInterval of those that show what watermill-sql could do; its default is a second.
const fastPoll = 5 * time.Millisecond

// A subscriber of the default schema reads and sorts all that is left for each batch, so that larger ones drain faster:
// this many are what PostgreSQL sorts within its default work_mem, with messages of a few hundred bytes. The queue's schema
// is read by its primary key, and gains nothing from more than a thousand.
const (
	defaultSchemaBatch = 5000
	queueSchemaBatch   = 1000
)

// forwarding is what the peers share whose relay is Watermill's Forwarder: messages are inserted in envelopes, as those of
// a topic of the Forwarder's own, and it takes them out again and publishes them.
type forwarding struct {
	env Env
	// topic is the Forwarder's, after which the tables are named.
	topic string
	// poll is how long a subscriber waits that has found nothing, and before it sends again what was not acknowledged; 0 is
	// watermill-sql's default.
	poll time.Duration
}

// aboutForwarding describes a peer for whoever reads the results.
func aboutForwarding(library, schema string, batch int, poll time.Duration) string {
	interval := "at its default, 1 s"
	if poll != 0 {
		interval = poll.String()
	}
	return fmt.Sprintf("%s with Watermill's `components/forwarder`, as in Watermill's transactional-events-forwarder example: %s, "+
		"SubscribeBatchSize %d, PollInterval %s; one message is published after the other", library, schema, batch, interval)
}

// publish puts messages in envelopes and has them inserted.
func (f *forwarding) publish(inserting message.Publisher, msgs []Message) error {
	enveloping := forwarder.NewPublisher(inserting, forwarder.PublisherConfig{ForwarderTopic: f.topic})
	return enveloping.Publish(f.env.Topic, watermillMessages(msgs, setKey)...)
}

// forward runs a Forwarder until the context ends. The batch it has in hand is then rolled back, and comes again.
func (f *forwarding) forward(ctx context.Context, from message.Subscriber, to message.Publisher) error {
	fwd, err := forwarder.NewForwarder(from, to, quiet, forwarder.Config{ForwarderTopic: f.topic})
	if err != nil {
		return fmt.Errorf("making Watermill's Forwarder: %w", err)
	}
	return fwd.Run(ctx)
}

// perTransaction is how many messages of a backlog share a transaction. The default schema is read in the order of
// transactions, so a single one would be another backlog than Commit leaves.
const perTransaction = 500

// fill inserts the envelopes of a backlog, byte for byte as Go marshals them. The default schema has a column more, for
// the transaction's id.
func (f *forwarding) fill(ctx context.Context, table string, withTransactionID bool, b Backlog) error {
	column, id := "", ""
	if withTransactionID {
		column, id = ", transaction_id", ", pg_current_xact_id()"
	}
	insert := fmt.Sprintf(`
		INSERT INTO %s (uuid, payload, metadata%s)
		SELECT gen_random_uuid(), ('{"destination_topic":' || to_json($1::text) || ',"uuid":"' || gen_random_uuid()
			|| '","payload":"' || translate(encode(convert_to(%s, 'UTF8'), 'base64'), E'\n', '')
			|| '","metadata":{"%s":' || to_json((%s)::text) || '}}')::json, '{}'%s
		FROM generate_series($2::int, $3::int - 1) i`,
		table, column, b.payloadSQL(), keyOf, b.keySQL(), id)
	for from := 0; from < b.N; from += perTransaction {
		if _, err := f.env.Pool.Exec(ctx, insert, f.env.Topic, from, min(from+perTransaction, b.N)); err != nil {
			return fmt.Errorf("filling %s: %w", table, err)
		}
	}
	return nil
}
