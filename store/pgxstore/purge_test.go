package pgxstore_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox/internal/pgtest"
)

// purges are from when on the chunks of a purge look for rows.
type purges struct{ from []time.Time }

func (p *purges) TraceQueryStart(ctx context.Context, _ *pgx.Conn, query pgx.TraceQueryStartData) context.Context {
	if strings.Contains(query.SQL, "DELETE FROM") {
		p.from = append(p.from, query.Args[2].(time.Time))
	}
	return ctx
}

func (p *purges) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// What is deleted is walked over again where a snapshot is held elsewhere, unless each chunk begins where the one before has
// ended.
func TestStore_PurgesEachChunkFromWhereTheOneBeforeHasEnded(t *testing.T) {
	t.Parallel()
	seen := &purges{}
	schema := pgtest.Schema(t, pgtest.V15)
	p := newProcess(t, schema, pgtest.V15.URL(), func(config *pgxpool.Config) { config.ConnConfig.Tracer = seen })
	for what, purge := range map[string]func(time.Time) (int64, error){
		"outbox_archive": func(before time.Time) (int64, error) { return p.DeleteProcessedBefore(t.Context(), before) },
		"outbox_processed": func(before time.Time) (int64, error) {
			return p.Processed().PurgeProcessedBefore(t.Context(), nil, before)
		},
	} {
		columns, values := "consumer_group, message_id", "'group', i"
		if what == "outbox_archive" {
			columns = "id, uuid, topic, key, payload, headers, retries, last_error, created_at, status"
			values = "i, '', 'topic', '', '', '{}', 0, '', now(), 'processed'"
		}
		rows, err := column[time.Time](t.Context(), p.pool, `
			WITH inserted AS (
				INSERT INTO `+schema+`.`+what+` (`+columns+`, processed_at)
				SELECT `+values+`, now() - i * interval '1 minute' FROM generate_series(1, 2500) i
				RETURNING processed_at
			)
			SELECT processed_at FROM inserted ORDER BY processed_at`)
		require.NoError(t, err)
		seen.from = nil
		n, err := purge(time.Now())
		require.NoError(t, err)
		require.EqualValues(t, 2500, n, what)
		require.Len(t, seen.from, 3, what)
		require.True(t, seen.from[0].Before(rows[0]), what)
		require.True(t, seen.from[1].Equal(rows[999]), what)
		require.True(t, seen.from[2].Equal(rows[1999]), what)
	}
}
