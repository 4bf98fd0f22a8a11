package pgxstore

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// echoTimeout is how long a notification to oneself may take.
const echoTimeout = 5 * time.Second

// lateInterval is how often a relay looks for messages while somebody else's transaction is open: their signal may have been
// left to that, since a process sends one at most every 100 ms, and it comes late or never.
const lateInterval = 50 * time.Millisecond

// Notify implements [outbox.Notifier]: it calls wake when somebody has published, here or in another process, until ctx
// ends or the connection is lost. It listens on a connection of its own, outside of the pool, and returns an error where
// nothing gets through: the Forwarder polls then.
func (s *Store) Notify(ctx context.Context, wake func()) error {
	if s.channel == "" {
		<-ctx.Done()
		return ctx.Err()
	}
	config := s.pool.Config()
	if config.BeforeConnect != nil {
		if err := config.BeforeConnect(ctx, config.ConnConfig); err != nil {
			return fmt.Errorf("pgxstore: listen: %w", err)
		}
	}
	listener, err := pgx.ConnectConfig(ctx, config.ConnConfig)
	if err != nil {
		return fmt.Errorf("pgxstore: listen: %w", err)
	}
	defer func() {
		closeCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), echoTimeout)
		defer cancel()
		_ = listener.Close(closeCtx) // the server ends the session either way
	}()
	if err := refusePooler(ctx, listener); err != nil {
		return err
	}
	if _, err := listener.Exec(ctx, "LISTEN "+pgx.Identifier{s.channel}.Sanitize()); err != nil {
		return fmt.Errorf("pgxstore: listen: %w", err)
	}
	if err := s.hearsItself(ctx, listener); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var late sync.WaitGroup
	defer late.Wait()
	defer cancel()
	late.Go(func() { s.wakeForLate(ctx, wake) })
	wake() // for what was published before
	for {
		if _, err := listener.WaitForNotification(ctx); err != nil {
			return fmt.Errorf("pgxstore: listen: %w", err)
		}
		wake()
	}
}

func (s *Store) wakeForLate(ctx context.Context, wake func()) {
	const idleTicks = int(time.Second / lateInterval) // there may be such a transaction, and nobody has looked
	ticks, ticker := 0, time.NewTicker(lateInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			ticks++
			if s.Expecting() || ticks%idleTicks == 0 {
				wake()
			}
		}
	}
}

// refusePooler returns an error if the session is not with the server itself. A pooler would go on listening for whoever
// gets its connection next.
func refusePooler(ctx context.Context, listener *pgx.Conn) error {
	var pid uint32
	if err := listener.QueryRow(ctx, "SELECT pg_backend_pid()").Scan(&pid); err != nil {
		return fmt.Errorf("pgxstore: listen: %w", err)
	}
	if pid != listener.PgConn().PID() {
		return errors.New("pgxstore: there is a pooler in between, through which nobody can listen")
	}
	return nil
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
			return fmt.Errorf("pgxstore: a notification did not come back: %w",
				errors.Join(err, context.Cause(ctx)))
		}
		if heard.Payload == word {
			return nil
		}
	}
}
