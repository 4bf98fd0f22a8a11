package consumer

import (
	"context"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/store/pgxstore"
)

// Ways are all that are compared, this project's first.
var Ways = []Way{Deduplicator, ByHand, WatermillDeduplicator, NoDeduplication}

// Deduplicator is this project's.
var Deduplicator = Way{
	Name: "Deduplicator",
	About: "this project: `outbox.NewDeduplicator(store.Processed(), \"bench\")` over `pgxstore`; mark and effect commit " +
		"in one transaction",
	New: func(ctx context.Context, pool *pgxpool.Pool, handle Handle) (message.HandlerFunc, error) {
		store, err := pgxstore.New(pool)
		if err != nil {
			return nil, err
		}
		if err := store.Migrate(ctx); err != nil {
			return nil, err
		}
		if _, err := pool.Exec(ctx, "TRUNCATE outbox_processed"); err != nil {
			return nil, err
		}
		dedup, err := outbox.NewDeduplicator(store.Processed(), "bench", outbox.WithLogger(watermill.NopLogger{}))
		if err != nil {
			return nil, err
		}
		return dedup.Middleware(func(msg *message.Message) ([]*message.Message, error) {
			tx, ok := store.TxFromContext(msg.Context())
			if !ok {
				return nil, outbox.ErrNoTx
			}
			return nil, handle(msg.Context(), tx, msg)
		}), nil
	},
	record: "SELECT count(*) FROM outbox_processed WHERE consumer_group = 'bench/" + handlerName + "'",
}

// ByHand is the same as people write it themselves.
var ByHand = Way{
	Name: "by hand",
	About: "begin, `INSERT INTO processed ... ON CONFLICT DO NOTHING`, the handler if a row went in, commit: by pgx, with a " +
		"table of consumer, message id and time, and an index on the time to delete by",
	New: func(_ context.Context, pool *pgxpool.Pool, handle Handle) (message.HandlerFunc, error) {
		return func(msg *message.Message) ([]*message.Message, error) {
			ctx := msg.Context()
			return nil, pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
				tag, err := tx.Exec(ctx,
					"INSERT INTO processed (consumer, message_id) VALUES ($1, $2) ON CONFLICT DO NOTHING", "bench", msg.UUID)
				if err != nil || tag.RowsAffected() == 0 {
					return err
				}
				return handle(ctx, tx, msg)
			})
		}, nil
	},
	record: "SELECT count(*) FROM processed",
}

// WatermillDeduplicator is the middleware that Watermill has. Its default key would not do: of 36,000 payloads of these
// messages, all different, Adler-32 makes 1,035 keys, and drops the rest. Each New leaves a goroutine behind, which
// Watermill never ends.
var WatermillDeduplicator = Way{
	Name: "Watermill's Deduplicator",
	About: "`middleware.Deduplicator` with its repository in memory, keyed by the UUID, around a handler with a transaction " +
		"of its own: it forgets at a restart, knows nothing of other instances, and marks before the handler runs, so that a " +
		"message whose handler fails is dropped when it comes again; for reference",
	New: func(_ context.Context, pool *pgxpool.Pool, handle Handle) (message.HandlerFunc, error) {
		seen, err := middleware.NewMapExpiringKeyRepository(window)
		if err != nil {
			return nil, err
		}
		dedup := &middleware.Deduplicator{
			KeyFactory: func(msg *message.Message) (string, error) { return msg.UUID, nil },
			Repository: seen,
			Timeout:    time.Minute, // the default that its documentation names
		}
		return dedup.Middleware(inTx(pool, handle)), nil
	},
}

// window is how long Watermill's Deduplicator knows a message: its default.
const window = time.Minute

// NoDeduplication is the floor.
var NoDeduplication = Way{
	Name:  "no deduplication",
	About: "the floor: the handler in a transaction of its own, for redeliveries as for everything else",
	New: func(_ context.Context, pool *pgxpool.Pool, handle Handle) (message.HandlerFunc, error) {
		return inTx(pool, handle), nil
	},
	repeats: true,
}

func inTx(pool *pgxpool.Pool, handle Handle) message.HandlerFunc {
	return func(msg *message.Message) ([]*message.Message, error) {
		ctx := msg.Context()
		return nil, pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return handle(ctx, tx, msg) })
	}
}
