package consumer

import (
	"context"
	"errors"
	"fmt"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"
)

// The Deduplicator records messages under the group and this name.
const (
	handlerName = "place-order"
	topic       = "orders.placed"
)

// routerContext returns what a router's messages carry in their contexts, for messages that come without a router: it asks a
// real one, since nobody else can make it. It does not end.
func routerContext(ctx context.Context) (context.Context, error) {
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	if err != nil {
		return nil, fmt.Errorf("make a router: %w", err)
	}
	messages := gochannel.NewGoChannel(gochannel.Config{Persistent: true}, watermill.NopLogger{})
	defer messages.Close() //nolint:errcheck // there is nothing to lose in it
	if err := messages.Publish(topic, message.NewMessage(watermill.NewUUID(), nil)); err != nil {
		return nil, fmt.Errorf("publish to a router: %w", err)
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	found := make(chan context.Context, 1)
	router.AddConsumerHandler(handlerName, topic, messages, func(msg *message.Message) error {
		found <- msg.Context()
		stop()
		return nil
	})
	if err := router.Run(ctx); err != nil {
		return nil, fmt.Errorf("run a router: %w", err)
	}
	select {
	case ofRouter := <-found:
		return context.WithoutCancel(ofRouter), nil
	default:
		return nil, errors.New("a router has given its handler no message")
	}
}
