package sqlite

import (
	"time"

	"github.com/watermill-outbox/outbox/internal/sqlstore"
)

// WithSweepInterval lets a test not wait for half a minute.
func WithSweepInterval(d time.Duration) Option {
	return func(o *sqlstore.Options) { o.SweepInterval = d }
}
