package pgxstore

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// echoTimeout is how long a notification to oneself may take. A pooler that shares connections out swallows it.
const echoTimeout = 5 * time.Second

// Notify implements [outbox.Notifier]: it calls wake when somebody has published, here or in another process, until ctx
// ends or the connection is lost. It listens on a connection of its own, outside of the pool, and returns an error where
// nothing gets through: the Forwarder polls then.
func (s *Store) Notify(ctx context.Context, wake func()) error {
	if s.channel == "" {
		<-ctx.Done()
		return ctx.Err()
	}
	listener, err := pgx.ConnectConfig(ctx, s.pool.Config().ConnConfig)
	if err != nil {
		return fmt.Errorf("pgxstore: listen: %w", err)
	}
	defer func() {
		closeCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), echoTimeout)
		defer cancel()
		_ = listener.Close(closeCtx) // the server ends the session either way
	}()
	if _, err := listener.Exec(ctx, "LISTEN "+pgx.Identifier{s.channel}.Sanitize()); err != nil {
		return fmt.Errorf("pgxstore: listen: %w", err)
	}
	if err := s.hearsItself(ctx, listener); err != nil {
		return err
	}
	wake() // for what was published before
	for {
		if _, err := listener.WaitForNotification(ctx); err != nil {
			return fmt.Errorf("pgxstore: listen: %w", err)
		}
		wake()
	}
}

// hearsItself sends a notification through the pool and waits for it.
func (s *Store) hearsItself(ctx context.Context, listener *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, echoTimeout)
	defer cancel()
	word := rand.Text()
	if _, err := s.pool.Exec(ctx, "SELECT pg_notify($1::text, $2::text)", s.channel, word); err != nil {
		return fmt.Errorf("pgxstore: notify: %w", err)
	}
	for {
		heard, err := listener.WaitForNotification(ctx)
		if err != nil {
			return fmt.Errorf("pgxstore: a notification did not come back; is there a pooler in transaction mode? %w",
				errors.Join(err, context.Cause(ctx)))
		}
		if heard.Payload == word {
			return nil
		}
	}
}
