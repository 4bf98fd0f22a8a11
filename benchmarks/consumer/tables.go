package consumer

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"
)

// createTables makes what is the application's own, anew: the effects, and the table that people write themselves.
func createTables(ctx context.Context, pool *pgxpool.Pool) error {
	_, err := pool.Exec(ctx, `
		DROP TABLE IF EXISTS effects, processed;
		CREATE TABLE effects (
			id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, message text NOT NULL, total bigint NOT NULL
		);
		CREATE TABLE processed (
			consumer text NOT NULL, message_id text NOT NULL, processed_at timestamptz NOT NULL DEFAULT now(),
			PRIMARY KEY (consumer, message_id)
		);
		CREATE INDEX ON processed (processed_at)`)
	return err
}

// check returns an error if the tables are not what so many deliveries must make of them.
func check(ctx context.Context, pool *pgxpool.Pool, way Way, deliveries int) error {
	var effects, distinct int
	err := pool.QueryRow(ctx, "SELECT count(*), count(DISTINCT message) FROM effects").Scan(&effects, &distinct)
	if err != nil {
		return fmt.Errorf("count the effects: %w", err)
	}
	messages := messagesIn(deliveries)
	wanted := messages
	if way.repeats {
		wanted = deliveries
	}
	if effects != wanted || distinct != messages {
		return fmt.Errorf("%d deliveries of %d messages have left %d effects of %d messages, and not %d",
			deliveries, messages, effects, distinct, wanted)
	}
	if way.record == "" {
		return nil
	}
	var recorded int
	if err := pool.QueryRow(ctx, way.record).Scan(&recorded); err != nil {
		return fmt.Errorf("count what is recorded as handled: %w", err)
	}
	if recorded != messages {
		return fmt.Errorf("%d messages are recorded as handled, and not %d", recorded, messages)
	}
	return nil
}
