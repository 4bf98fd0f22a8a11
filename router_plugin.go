package outbox

import (
	"context"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
)

// RouterPlugin is a message.RouterPlugin that runs f as long as the router runs: router.AddPlugin(f.RouterPlugin).
// A router that starts returns the error if f cannot run; one that closes waits for f to end, so give it a CloseTimeout
// above f's.
func (f *Forwarder) RouterPlugin(r *message.Router) error {
	// A router has no hook for its end. It closes subscribers, though, or cancels their contexts.
	name := "outbox_forwarder_" + watermill.NewShortUUID()
	r.AddConsumerHandler(name, "outbox", &routerSubscriber{forwarder: f}, func(*message.Message) error { return nil })
	return nil
}

// routerSubscriber is a subscriber whose subscription is the Forwarder's run. It delivers nothing.
type routerSubscriber struct{ forwarder *Forwarder }

// Subscribe starts the Forwarder, and returns its error if it ends before it has begun. The channel is closed at its
// end.
func (s *routerSubscriber) Subscribe(ctx context.Context, _ string) (<-chan *message.Message, error) {
	f := s.forwarder
	messages := make(chan *message.Message)
	ended := make(chan error, 1)
	go func() { // ends with the router, by Close or by ctx
		defer close(messages)
		err := f.Run(ctx)
		if err != nil {
			f.cfg.Logger.Error("The Forwarder has ended", err, nil)
		}
		ended <- err
	}()
	select {
	case err := <-ended:
		return messages, err
	case <-f.Running():
		return messages, nil
	case <-ctx.Done():
		return messages, nil
	}
}

func (s *routerSubscriber) Close() error { return s.forwarder.Close() }
