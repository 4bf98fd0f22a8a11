package brokers_test

import (
	"context"
	"sync"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"
)

// channels are publisher and subscriber at once, and keep nothing for those who are not there.
type channels struct{ *gochannel.GoChannel }

func newChannels(testing.TB) broker {
	// Otherwise a message counts as published before anybody has it.
	return channels{gochannel.NewGoChannel(gochannel.Config{BlockPublishUntilSubscriberAck: true}, quiet)}
}

// newPersistentChannels are for Watermill's suite, which publishes before it subscribes. They do not block: nobody can
// subscribe while a message waits for its ack, and all tests of a suite share them.
func newPersistentChannels(testing.TB) broker {
	return channels{gochannel.NewGoChannel(gochannel.Config{Persistent: true, OutputChannelBuffer: 10_000}, quiet)}
}

func (c channels) Publisher(testing.TB, *network) message.Publisher { return shared(c) }

func (c channels) Subscriber(testing.TB, string) message.Subscriber {
	ctx, cancel := context.WithCancel(context.Background())
	return &channelSubscriber{channels: c.GoChannel, ctx: ctx, cancel: cancel}
}

func (channels) CreateTopic(testing.TB, string) {}
func (channels) Refuse(*message.Message) bool   { return false }
func (channels) TellsWhatIsPermanent() bool     { return false }

func (channels) IsPermanent(error) bool   { return false }
func (channels) Features() tests.Features { return tests.Features{RequireSingleInstance: true} }

// shared is not closed with one of its publishers.
type shared struct{ *gochannel.GoChannel }

func (shared) Close() error { return nil }

// channelSubscriber ends with its own subscriptions, and the channels go on.
type channelSubscriber struct {
	channels *gochannel.GoChannel
	ctx      context.Context //nolint:containedctx // of the subscriptions
	cancel   context.CancelFunc
	mu       sync.Mutex
	messages []<-chan *message.Message
}

func (s *channelSubscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	ctx, cancel := context.WithCancel(ctx)
	context.AfterFunc(s.ctx, cancel)
	messages, err := s.channels.Subscribe(ctx, topic)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.messages = append(s.messages, messages)
	return messages, err
}

func (s *channelSubscriber) Close() error {
	s.cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, messages := range s.messages {
		for range messages { // until it is closed
		}
	}
	return nil
}
