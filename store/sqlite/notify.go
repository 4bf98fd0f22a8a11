package sqlite

import (
	"context"
	"errors"
	"time"
)

// watchInterval is how often Notify looks. A look reads a counter in shared memory, which takes some microseconds.
const watchInterval = 5 * time.Millisecond

// Notify implements [outbox.Notifier]. PRAGMA data_version on a connection of its own tells whether another connection,
// of whatever process, has committed anything: https://www.sqlite.org/pragma.html#pragma_data_version
func (s *Store) Notify(ctx context.Context, wake func()) error {
	if s.db.Stats().MaxOpenConnections == 1 {
		return errors.New("sqlite: the *sql.DB has one connection, and none to spare for noticing commits")
	}
	conn, err := s.db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // it goes back to the pool
	stmt, err := conn.PrepareContext(ctx, "PRAGMA data_version")
	if err != nil {
		return err
	}
	defer stmt.Close() //nolint:errcheck // the connection goes on without it
	ticker := time.NewTicker(watchInterval)
	defer ticker.Stop()
	var last int64
	for {
		var version int64
		err := stmt.QueryRowContext(ctx).Scan(&version)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		case version != last:
			last = version
			wake()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}
