package outbox

import (
	"context"
	"errors"
	"fmt"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
)

// RouterPlugin is a message.RouterPlugin that runs f as long as the router runs: router.AddPlugin(f.RouterPlugin).
//
// f begins when all handlers have subscribed. A router whose outbox is not migrated does not start, and its Run returns
// [ErrNotMigrated]; nor does one whose f was closed, as a router closes it at its end ([ErrClosed]): make a new Forwarder
// for each router. A router that closes waits for f to end, so give it a CloseTimeout above f's. It closes its
// subscribers at the same time, which brokers of the process itself, like Go channels, do not survive without loss: run
// f beside the router then, and close it first.
func (f *Forwarder) RouterPlugin(r *message.Router) error {
	// A router has no hook for its end. It closes subscribers, though, or cancels their contexts.
	name := "outbox_forwarder_" + watermill.NewShortUUID()
	s := &routerSubscriber{forwarder: f, running: r.Running()}
	r.AddConsumerHandler(name, "outbox", s, func(*message.Message) error { return nil })
	return nil
}

// routerSubscriber is a subscriber whose subscription is the Forwarder's run. It delivers nothing.
type routerSubscriber struct {
	forwarder *Forwarder
	running   <-chan struct{} // closed when the router has subscribed everybody
}

// Subscribe has the Forwarder run when the router does. The channel is closed at its end.
func (s *routerSubscriber) Subscribe(ctx context.Context, _ string) (<-chan *message.Message, error) {
	if s.forwarder.isClosed() {
		return nil, fmt.Errorf("%w, as a router closes its Forwarder: make a new one for each router", ErrClosed)
	}
	if err := s.forwarder.checkSchema(ctx); err != nil {
		return nil, err
	}
	messages := make(chan *message.Message)
	go func() { // ends with the router, by Close or by ctx
		defer close(messages)
		select {
		case <-s.running:
		case <-ctx.Done():
			return
		}
		if err := s.forwarder.Run(ctx); err != nil {
			s.forwarder.cfg.Logger.Error("The Forwarder has ended", err, nil)
		}
	}()
	return messages, nil
}

func (f *Forwarder) isClosed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.closed
}

// checkSchema returns ErrNotMigrated if that is what Run would return. Anything else Run waits for.
func (f *Forwarder) checkSchema(ctx context.Context) error {
	if checker, ok := f.store.(SchemaChecker); ok {
		if err := checker.CheckSchema(ctx); errors.Is(err, ErrNotMigrated) {
			return err
		}
	}
	return nil
}

func (s *routerSubscriber) Close() error { return s.forwarder.Close() }
