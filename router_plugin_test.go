package outbox_test

import (
	"context"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/store/sqlite"
)

func newRouter(t *testing.T) *message.Router {
	t.Helper()
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	require.NoError(t, err)
	return router
}

func TestRouterPlugin_RunsAndEndsWithTheRouter(t *testing.T) {
	for name, stop := range map[string]func(*message.Router, context.CancelFunc) error{
		"Close":   func(r *message.Router, _ context.CancelFunc) error { return r.Close() },
		"context": func(_ *message.Router, cancel context.CancelFunc) error { cancel(); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			one, two := newMemory(t), newMemory(t)
			router, b := newRouter(t), newBroker()
			for _, store := range []outbox.Store{one, two} { // two on one router have names of their own
				f, err := outbox.NewForwarder(store, b, outbox.WithLogger(watermill.NopLogger{}))
				require.NoError(t, err)
				router.AddPlugin(f.RouterPlugin)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ended := make(chan error, 1)
			go func() { ended <- router.Run(ctx) }()
			<-router.Running()
			publish(t, one, "topic", newMessage("x", ""))
			publish(t, two, "topic", newMessage("y", ""))
			b.await(t, 2)
			require.NoError(t, stop(router, cancel))
			require.NoError(t, <-ended)

			next, err := outbox.NewForwarder(one, b, outbox.WithLogger(watermill.NopLogger{}))
			require.NoError(t, err)
			_, err = next.Drain(t.Context())
			require.NoError(t, err, "the lease was given up, and the store is free")
		})
	}
}

func TestRouterPlugin_ARouterWhoseForwarderCannotRunSaysWhy(t *testing.T) {
	db, err := sqlite.Open(t.TempDir() + "/outbox.db")
	require.NoError(t, err)
	defer func() { require.NoError(t, db.Close()) }()
	store, err := sqlite.New(db) // and no Migrate
	require.NoError(t, err)
	defer func() { require.NoError(t, store.Close()) }()
	f, err := outbox.NewForwarder(store, newBroker(), outbox.WithLogger(watermill.NopLogger{}))
	require.NoError(t, err)
	router := newRouter(t)
	router.AddPlugin(f.RouterPlugin)
	pubSub := gochannel.NewGoChannel(gochannel.Config{}, nil)
	router.AddConsumerHandler("other", "topic", pubSub, func(*message.Message) error { return nil })
	err = router.Run(t.Context())
	require.ErrorIs(t, err, outbox.ErrNotMigrated)
	require.ErrorContains(t, err, "store.Migrate(ctx)")
	require.NoError(t, pubSub.Close())
}

func TestRouterPlugin_ARouterWhoseForwarderWasClosedDoesNotRunWithoutIt(t *testing.T) {
	f, err := outbox.NewForwarder(newMemory(t), newBroker(), outbox.WithLogger(watermill.NopLogger{}))
	require.NoError(t, err)
	require.NoError(t, f.Close()) // as the router before did
	router := newRouter(t)
	router.AddPlugin(f.RouterPlugin)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { // one that runs ends, too
		select {
		case <-router.Running():
			cancel()
		case <-ctx.Done():
		}
	}()
	require.ErrorIs(t, router.Run(ctx), outbox.ErrClosed)
}

func TestRouterPlugin_BeginsWhenAllHandlersHaveSubscribed(t *testing.T) {
	store := newMemory(t)
	f, err := outbox.NewForwarder(store, newBroker(), outbox.WithLogger(watermill.NopLogger{}))
	require.NoError(t, err)
	router := newRouter(t)
	router.AddPlugin(f.RouterPlugin)
	late := &lateSubscriber{subscribing: make(chan struct{}), goOn: make(chan struct{})}
	router.AddConsumerHandler("late", "topic", late, func(*message.Message) error { return nil })
	ended := make(chan error, 1)
	go func() { ended <- router.Run(t.Context()) }()
	<-late.subscribing
	select {
	case <-f.Running():
		require.FailNow(t, "the Forwarder runs while a handler has not subscribed")
	case <-time.After(20 * time.Millisecond): // one that does not wait runs by then
	}
	close(late.goOn)
	<-f.Running()
	require.NoError(t, router.Close())
	require.NoError(t, <-ended)
}

// lateSubscriber takes its time to subscribe.
type lateSubscriber struct {
	subscribing, goOn chan struct{}
	messages          chan *message.Message
}

func (s *lateSubscriber) Subscribe(context.Context, string) (<-chan *message.Message, error) {
	close(s.subscribing)
	<-s.goOn
	s.messages = make(chan *message.Message)
	return s.messages, nil
}

func (s *lateSubscriber) Close() error {
	close(s.messages)
	return nil
}
