package router_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/components/cqrs"
	"github.com/ThreeDotsLabs/watermill/components/requestreply"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
)

type (
	reserve     struct{ Item string }
	reservation struct{ Number int }
	backend     = requestreply.PubSubBackend[reservation]
)

// docs:begin backend

// newBackend publishes replies to the outbox, so that a reply commits together with what the handler has written.
func (s *service) newBackend(
	publisher message.Publisher, replies message.Subscriber, timeout time.Duration,
) (*backend, error) {
	return requestreply.NewPubSubBackend(requestreply.PubSubBackendConfig{
		Publisher: publisher,
		SubscriberConstructor: func(requestreply.PubSubBackendSubscribeParams) (message.Subscriber, error) {
			return replies, nil // a subscription of it ends with its request
		},
		GeneratePublishTopic: func(requestreply.PubSubBackendPublishParams) (string, error) {
			return s.topic("replies"), nil
		},
		GenerateSubscribeTopic: func(requestreply.PubSubBackendSubscribeParams) (string, error) {
			return s.topic("replies"), nil
		},
		ListenForReplyTimeout: &timeout,
		AckCommandErrors:      true, // an error is a reply; the handler undoes what it wrote
	}, requestreply.BackendPubsubJSONMarshaler[reservation]{})
}

// newReplySubscriber returns one without a consumer group, which begins with the newest message: everybody who waits
// sees all replies, and a subscription has begun when Subscribe returns.
func newReplySubscriber() (message.Subscriber, error) {
	return kafka.NewSubscriber(kafka.SubscriberConfig{
		Brokers:               brokers(),
		Unmarshaler:           kafka.DefaultMarshaler{},
		OverwriteSaramaConfig: kafka.DefaultSaramaSubscriberConfig(),
	}, watermill.NopLogger{})
}

// docs:end backend

// docs:begin reply

// reserve is the command's handler. An error undoes what was written after the savepoint, and is the reply; the
// transaction, with the note that the command was handled, commits all the same.
func (w *warehouse) reserve(ctx context.Context, c *reserve) (r reservation, err error) {
	tx, ok := w.store.TxFromContext(ctx)
	if !ok {
		return r, errors.New("the context carries no transaction: is the Deduplicator among the middleware?")
	}
	err = pgx.BeginFunc(ctx, tx, func(savepoint pgx.Tx) error {
		const insert = "INSERT INTO reservations (item) VALUES ($1) RETURNING number"
		if err := savepoint.QueryRow(ctx, insert, c.Item).Scan(&r.Number); err != nil {
			return err
		}
		return w.check(c.Item)
	})
	return r, err
}

// docs:end reply

// warehouse reserves what is asked for.
type warehouse struct {
	*service
	commands *cqrs.CommandBus
	replies  message.Subscriber
	output   message.Publisher
	router   *message.Router
	handled  *deliveries
}

func newWarehouse(t *testing.T) *warehouse {
	t.Helper()
	w := &warehouse{
		service: newService(t, "CREATE TABLE reservations (number bigint GENERATED ALWAYS AS IDENTITY, item text NOT NULL)",
			"commands.reserve", "replies", "carts", "poison"),
		handled: newDeliveries(),
	}
	// Who asks is outside of any transaction, and who answers inside of one.
	publisher, err := outbox.NewPublisher(w.store, outbox.WithOwnTx())
	require.NoError(t, err)
	w.output = publisher
	buses, err := w.newBuses(publisher)
	require.NoError(t, err)
	w.commands = buses.commands
	w.replies, err = newReplySubscriber()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, w.replies.Close()) })

	w.router, err = message.NewRouter(message.RouterConfig{}, w.logger)
	require.NoError(t, err)
	w.router.AddMiddleware(w.handled.middleware)
	require.NoError(t, w.addMiddleware(w.router, publisher))
	processor, err := cqrs.NewCommandProcessorWithConfig(w.router, cqrs.CommandProcessorConfig{
		GenerateSubscribeTopic: func(p cqrs.CommandProcessorGenerateSubscribeTopicParams) (string, error) {
			return w.topic("commands." + p.CommandName), nil
		},
		SubscriberConstructor: func(p cqrs.CommandProcessorSubscriberConstructorParams) (message.Subscriber, error) {
			return w.subscriber(p.HandlerName)
		},
		Marshaler: marshaler,
	})
	require.NoError(t, err)
	require.NoError(t, processor.AddHandlers(
		requestreply.NewCommandHandlerWithResult("reserve", w.backend(t, patience), w.reserve)))
	return w
}

func (w *warehouse) backend(t *testing.T, timeout time.Duration) *backend {
	t.Helper()
	b, err := w.newBackend(w.output, w.replies, timeout)
	require.NoError(t, err)
	return b
}

var errSoldOut = errors.New("sold out")

func (w *warehouse) check(item string) error {
	if item == "unicorn" {
		return errSoldOut
	}
	return nil
}

// request asks for an item, and waits for the reply.
func (w *warehouse) request(ctx context.Context, b *backend, item string) (reservation, error) {
	reply, err := requestreply.SendWithReply(ctx, w.commands, b, &reserve{item})
	if err != nil {
		return reservation{}, err
	}
	return reply.HandlerResult, reply.Error
}

// reserved returns what was, and how many commands the outbox has ever had.
func (w *warehouse) reserved(t *testing.T) (items []string, asked int) {
	t.Helper()
	require.NoError(t, w.pool.QueryRow(t.Context(), `
		SELECT (SELECT count(*) FROM outbox_messages WHERE topic = $1) +
			(SELECT count(*) FROM outbox_archive WHERE topic = $1)`,
		w.topic("commands.reserve")).Scan(&asked))
	return w.rows(t, "SELECT item FROM reservations ORDER BY number"), asked
}

func TestRequestReply_GoesThroughTheOutbox_OutsideOfTransactions(t *testing.T) {
	t.Parallel()
	w := newWarehouse(t)
	run(t, w.router)
	w.forward(t, w.kafka)
	r, err := w.request(t.Context(), w.backend(t, patience), "chair")
	require.NoError(t, err)
	require.Equal(t, 1, r.Number)
	items, asked := w.reserved(t)
	require.Equal(t, []string{"chair"}, items)
	require.Equal(t, 1, asked)
}

// The reply says that it failed, and nothing of it is left; the command does not come again.
func TestRequestReply_RepliesTheError_AndUndoesWhatTheHandlerWrote(t *testing.T) {
	t.Parallel()
	w := newWarehouse(t)
	run(t, w.router)
	w.forward(t, w.kafka)
	_, err := w.request(t.Context(), w.backend(t, patience), "unicorn")
	require.EqualError(t, err, errSoldOut.Error())
	w.handled.await(t, 1, map[string]int{"reserve": 1})
	items, asked := w.reserved(t)
	require.Empty(t, items)
	require.Equal(t, 1, asked)
	require.Empty(t, w.poisoned(t))
}

// The command is in the transaction of the handler that waits, so nobody receives it, and no reply can come. When the
// handler gives up, the command is rolled back with the rest.
func TestRequestReply_TimesOut_WhenAHandlerWaitsInItsTransaction(t *testing.T) {
	t.Parallel()
	w := newWarehouse(t)
	impatient := w.backend(t, time.Second)
	var errs []error // of the attempts, one after the other
	carts, err := w.subscriber("check-out")
	require.NoError(t, err)
	w.router.AddConsumerHandler("check-out", w.topic("carts"), carts, func(msg *message.Message) error {
		if len(errs) > 0 {
			return nil // the second attempt does without
		}
		_, err := w.request(msg.Context(), impatient, "table")
		errs = append(errs, err)
		return err
	})
	run(t, w.router)
	w.forward(t, w.kafka)
	require.NoError(t, w.kafka.Publish(w.topic("carts"), message.NewMessage(watermill.NewUUID(), nil)))
	w.handled.await(t, 1, map[string]int{"check-out": 1})
	var timeout requestreply.ReplyTimeoutError
	require.Len(t, errs, 1)
	require.ErrorAs(t, errs[0], &timeout)
	items, asked := w.reserved(t)
	require.Empty(t, items)
	require.Zero(t, asked)

	_, err = w.request(t.Context(), w.backend(t, patience), "table") // it was not the broker
	require.NoError(t, err)
}
