package pgdialect_test

import (
	"context"
	"testing"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/internal/pgtest"
	"github.com/watermill-outbox/outbox/internal/sqlstore"
)

// As the page says: a handler that returns messages publishes, too.
func TestPrivileges_OfHandlingAndPublishingTogetherLetAHandlerReturnMessages(t *testing.T) {
	t.Parallel()
	const both = "both"
	for kind := range clients {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			p := newPage(t, pgtest.V15, kind)
			p.grantAll(t)
			p.login(t, both, publishing, handling)
			admin, end := p.asAdmin(t)
			defer end()
			for role, state := range map[string]string{
				publishing: insufficientPrivilege, handling: insufficientPrivilege, both: "",
			} {
				uuid := role + " handles"
				err := p.handle(t, role, uuid)
				require.Equal(t, state, sqlstore.SQLState(err), "%s: %v", role, err)
				handled, lookErr := admin.processed.IsProcessed(t.Context(), nil, "group/returns", uuid)
				require.NoError(t, lookErr)
				require.Equal(t, role == both, handled && err == nil, "%s: %v", role, err)
			}
			stats, err := admin.Stats(t.Context())
			require.NoError(t, err)
			require.EqualValues(t, 2, stats.Pending)
		})
	}
}

// handle has a router handle one message under a Deduplicator, by a handler that returns two, and returns what came of it.
func (p *page) handle(t *testing.T, role, uuid string) error {
	t.Helper()
	store, end := p.as(t, role)
	defer end()
	publisher, err := outbox.NewPublisher(store.sqlStore)
	require.NoError(t, err)
	dedup, err := outbox.NewDeduplicator(store.processed, "group")
	require.NoError(t, err)
	channel := gochannel.NewGoChannel(gochannel.Config{Persistent: true}, watermill.NopLogger{})
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	require.NoError(t, err)
	result := make(chan error, 1)
	router.AddMiddleware(func(h message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) {
			produced, err := h(msg)
			result <- err
			return produced, nil // what has failed shall not come again
		}
	}, dedup.Middleware)
	router.AddHandler("returns", "in", channel, "out", publisher, func(*message.Message) ([]*message.Message, error) {
		return []*message.Message{message.NewMessage(uuid+" 1", nil), message.NewMessage(uuid+" 2", nil)}, nil
	})
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- router.Run(ctx) }() // ends with ctx
	require.NoError(t, channel.Publish("in", message.NewMessage(uuid, nil)))
	err = <-result
	cancel()
	require.NoError(t, <-ran)
	require.NoError(t, channel.Close())
	return err
}
