package pgdialect

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox/internal/pgtest"
)

// While a snapshot is held elsewhere, what has been deleted stays in the index. A chunk that begins where the one before has
// ended does not walk over it: the last one of many touches no more blocks than the first, and far fewer than without the
// bound. (Rows lie about in any order, so that each that is looked at is a block.)
func TestPurge_DoesNotWalkOverWhatItHasDeleted_WhileASnapshotIsHeld(t *testing.T) {
	t.Parallel()
	const chunk, chunks = 500, 20
	for name, fill := range map[string]string{
		"archive_purge": `
			INSERT INTO outbox_archive
			SELECT i, '', 'topic', '', '', '{}', 0, NULL, '', now(), 'processed', now() + i * interval '1 millisecond'
			FROM generate_series(1, $1::int) i ORDER BY random()`,
		"processed_purge": `
			INSERT INTO outbox_processed (consumer_group, message_id, processed_at)
			SELECT 'group', i, now() + i * interval '1 millisecond' FROM generate_series(1, $1::int) i ORDER BY random()`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			schema := migrated(t, pgtest.V15)
			db, holder := connect(t, pgtest.V15), connect(t, pgtest.V15)
			exec(t, db, render(t, schema, fill), chunk*chunks)
			exec(t, db, render(t, schema, "VACUUM ANALYZE outbox_archive, outbox_processed"))
			exec(t, holder, "BEGIN ISOLATION LEVEL REPEATABLE READ")
			exec(t, holder, "SELECT count(*) FROM pg_class") // takes the snapshot
			purge := query(t, schema, name)

			begin := time.Unix(0, 0)
			first := blocksOf(t, db, purge, chunk, begin)
			last := begin
			for range chunks - 1 {
				rows, err := db.Query(t.Context(), purge, "infinity", chunk, last)
				require.NoError(t, err)
				deleted, err := pgx.CollectRows(rows, pgx.RowTo[time.Time])
				require.NoError(t, err)
				require.Len(t, deleted, chunk)
				last = slices.MaxFunc(deleted, time.Time.Compare)
			}
			bounded, unbounded := blocksOf(t, db, purge, chunk, last), blocksOf(t, db, purge, chunk, begin)
			t.Logf("blocks: the first chunk %d, the last %d, without the bound %d", first, bounded, unbounded)
			assert.Less(t, bounded, 2*first)
			assert.Less(t, 2*bounded, unbounded)
		})
	}
}

// blocksOf returns how many blocks a chunk touches, and undoes it.
func blocksOf(t *testing.T, db *pgx.Conn, purge string, chunk int, from time.Time) int {
	t.Helper()
	tx, err := db.Begin(t.Context())
	require.NoError(t, err)
	defer tx.Rollback(context.Background()) //nolint:errcheck // it is for nothing else
	_, err = tx.Exec(t.Context(), "PREPARE purge AS "+purge)
	require.NoError(t, err)
	var text []byte
	execute := fmt.Sprintf("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE purge('infinity', %d, '%s')", chunk, from.Format(time.RFC3339Nano))
	require.NoError(t, tx.QueryRow(t.Context(), execute).Scan(&text))
	_, err = tx.Exec(t.Context(), "DEALLOCATE purge")
	require.NoError(t, err)
	var plans []struct {
		Plan struct {
			Hit  int `json:"Shared Hit Blocks"`
			Read int `json:"Shared Read Blocks"`
		}
	}
	require.NoError(t, json.Unmarshal(text, &plans)) //nolint:musttag // the one name is the field's
	return plans[0].Plan.Hit + plans[0].Plan.Read
}
