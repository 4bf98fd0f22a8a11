package outbox

import (
	"context"
	"time"

	"github.com/ThreeDotsLabs/watermill"
)

// CleanupOption configures [RunProcessedCleanup].
type CleanupOption interface{ applyCleanup(c *cleanup) }

type cleanup struct{ logger watermill.LoggerAdapter }

// RunProcessedCleanup deletes, at once and then every interval, what store recorded longer than retention ago. It
// blocks until ctx ends. db is as for the methods of [ProcessedStore]; nil is the store's own. A message that is
// redelivered after its record was deleted is handled again, so keep the retention well above the longest time for
// which your broker may redeliver.
//
// If retention or interval is not positive it logs that and returns at once. Errors are logged, and the next interval
// tries again. Any number of processes may run it at the same time.
func RunProcessedCleanup(
	ctx context.Context, store ProcessedStore, db any, retention, interval time.Duration, opts ...CleanupOption,
) {
	c := cleanup{logger: defaultLogger()}
	for _, opt := range opts {
		if !isNil(opt) {
			opt.applyCleanup(&c)
		}
	}
	if isNil(c.logger) {
		c.logger = defaultLogger() // there is nobody to return an error to
	}
	fields := watermill.LogFields{"retention": retention, "interval": interval}
	if retention <= 0 || interval <= 0 || isNil(store) {
		c.logger.Info("Cleanup of processed message ids is off: it needs a store, a retention and an interval", fields)
		return
	}
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		n, err := store.PurgeProcessedBefore(ctx, db, time.Now().Add(-retention))
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			c.logger.Error("Cleanup of processed message ids failed, will be tried again", err, fields)
		case n > 0:
			c.logger.Debug("Cleaned up processed message ids", fields.Add(watermill.LogFields{"deleted": n}))
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}
