package router_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/trace"

	"github.com/watermill-outbox/outbox"
)

// openShop starts everything: the shop's router, a consumer of its notifications, and a Forwarder over broker.
func openShop(t *testing.T, broker func(message.Publisher) message.Publisher) (*shop, *deliveries) {
	t.Helper()
	service := newService(t, shopTables,
		"commands.placeOrder", "commands.shipOrder", "orders", "notifications", "poison")
	s := &shop{service: service}
	require.NoError(t, s.connect())
	router, err := message.NewRouter(message.RouterConfig{}, s.logger)
	require.NoError(t, err)
	d := newDeliveries()
	router.AddMiddleware(d.middleware)
	require.NoError(t, s.addMiddleware(router, s.publisher))
	require.NoError(t, s.addHandlers(router))
	require.NoError(t, s.addNotifier(router))

	customer, err := s.subscriber("customer") // another service, which deduplicates by itself
	require.NoError(t, err)
	router.AddConsumerHandler("customer", s.topic("notifications"), customer,
		func(*message.Message) error { return nil })

	run(t, router)
	s.forward(t, broker(s.kafka))
	return s, d
}

// shopHandlers are all handlers of the shop, with how many messages an order makes for each.
var shopHandlers = map[string]int{
	"place-order": 1, "issue-invoice": 2, "ship-order": 1, "history": 2, "notify": 2, "customer": 2,
}

// docs:begin send

// order sends the command in the transaction that records the request. If the request is refused, so is the command.
func (s *shop) order(ctx context.Context, orderID string, amount int) error {
	return s.store.InTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		if err := s.commands.Send(ctx, placeOrder{orderID}); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, "INSERT INTO requests (order_id, amount) VALUES ($1, $2)", orderID, amount)
		return err
	})
}

// docs:end send

// What a handler writes and what it sends commit together, so with every message delivered twice each order has one row
// of everything, those that were rolled back have none, and the events of an order are recorded as they came about.
func TestCQRS_HandlesEachCommandAndEventOnce_WhenKafkaDeliversAllTwice(t *testing.T) {
	t.Parallel()
	s, d := openShop(t, func(p message.Publisher) message.Publisher { return twice{p} })
	var placed []string
	for i := range 20 {
		id := fmt.Sprintf("order-%02d", i)
		if i%4 == 3 {
			require.ErrorContains(t, s.order(t.Context(), id, 0), "violates check constraint")
			continue
		}
		require.NoError(t, s.order(t.Context(), id, 100))
		placed = append(placed, id)
	}
	expected := map[string]int{}
	for handler, n := range shopHandlers {
		expected[handler] = n * len(placed)
	}
	delivered := d.await(t, 2, expected)

	for _, query := range []string{
		"SELECT order_id FROM requests ORDER BY order_id",
		"SELECT id FROM orders ORDER BY id",
		"SELECT order_id FROM invoices ORDER BY order_id",
		"SELECT order_id FROM shipments ORDER BY order_id",
	} {
		require.Equal(t, placed, s.rows(t, query), query)
	}
	var history []string
	for _, id := range placed {
		history = append(history, id+" placed", id+" shipped")
	}
	require.Equal(t, history, s.rows(t, "SELECT order_id || ' ' || event FROM history ORDER BY order_id, seq"))
	for handler, messages := range delivered {
		require.Len(t, messages, expected[handler], handler)
	}
	require.Empty(t, s.poisoned(t))
}

// A request's correlation id and trace are in every message that it leads to: the command, the events of its handler
// and of those after it, and the message that a handler of those returned.
func TestCQRS_CarriesCorrelationAndTrace_FromTheRequestToTheLastConsumer(t *testing.T) {
	t.Parallel()
	s, d := openShop(t, func(p message.Publisher) message.Publisher { return p })
	const requests = 3
	traces := map[string]string{} // by correlation id
	for i := range requests {
		id := fmt.Sprintf("request-%d", i)
		span := trace.NewSpanContext(trace.SpanContextConfig{
			TraceID: trace.TraceID{1, byte(i)}, SpanID: trace.SpanID{2, byte(i)}, TraceFlags: trace.FlagsSampled,
		})
		ctx := trace.ContextWithSpanContext(t.Context(), span)
		ctx = context.WithValue(ctx, requestID{}, id)
		traces[id] = fmt.Sprintf("00-%s-%s-01", span.TraceID(), span.SpanID())
		require.NoError(t, s.order(ctx, "order-of-"+id, 100))
	}
	expected := map[string]int{}
	for handler, n := range shopHandlers {
		expected[handler] = n * requests
	}
	for handler, messages := range d.await(t, 1, expected) {
		require.Len(t, messages, expected[handler], handler)
		for _, msg := range messages {
			id := msg.Metadata.Get("correlation_id")
			require.Equal(t, "order-of-"+id, outbox.Key(msg), handler)
			require.Equal(t, traces[id], msg.Metadata.Get("traceparent"), handler)
		}
	}
}
