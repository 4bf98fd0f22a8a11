package embedded

import (
	"context"
	"database/sql"
	"os"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
)

func TestMeasure_EachWay(t *testing.T) {
	t.Parallel()
	for _, way := range Ways {
		t.Run(way.Name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			metrics, err := MeasureDrain(t.Context(), dir, way, 2500)
			require.NoError(t, err)
			require.Positive(t, metrics["rate_per_s"])
			require.Positive(t, metrics["cpu_s_per_million"])

			metrics, err = MeasureCaller(t.Context(), dir, way, 100*time.Millisecond)
			require.NoError(t, err)
			require.Positive(t, metrics["tx_per_s"])
			require.Positive(t, metrics["p50_ms"])
			require.GreaterOrEqual(t, metrics["p99_ms"], metrics["p50_ms"])

			left, err := os.ReadDir(dir)
			require.NoError(t, err)
			require.Empty(t, left)
		})
	}
}

// recorder keeps the messages that it is given.
type recorder struct{ msgs chan *message.Message }

func (r recorder) Publish(_ string, msgs ...*message.Message) error {
	for _, msg := range msgs {
		r.msgs <- msg
	}
	return nil
}

func (r recorder) Close() error { return nil }

func TestWays_PublishTheSame(t *testing.T) {
	t.Parallel()
	for _, way := range Ways {
		t.Run(way.Name, func(t *testing.T) {
			t.Parallel()
			err := way.use(t.Context(), t.TempDir(), func(db *sql.DB, b box) error {
				_, err := db.ExecContext(t.Context(), createOrders)
				require.NoError(t, err)
				placed := newOrder(7)
				require.NoError(t, place(t.Context(), db, b, placed))
				r := recorder{make(chan *message.Message, 1)}
				n, err := b.drain(t.Context(), r)
				require.NoError(t, err)
				require.Equal(t, 1, n)
				msg := <-r.msgs
				require.Equal(t, placed.uuid, msg.UUID)
				require.Equal(t, placed.key, outbox.Key(msg))
				require.Equal(t, string(placed.payload), string(msg.Payload))
				require.Equal(t, "OrderPlaced", msg.Metadata["name"])
				return nil
			})
			require.NoError(t, err)
		})
	}
}

func TestWays_HaveTheSettingsThatTheySay(t *testing.T) {
	t.Parallel()
	const full = 2
	err := Ours.use(t.Context(), t.TempDir(), func(db *sql.DB, _ box) error {
		var synchronous int
		require.NoError(t, db.QueryRowContext(t.Context(), "PRAGMA synchronous").Scan(&synchronous))
		require.Equal(t, full, synchronous)
		return nil
	})
	require.NoError(t, err)
}

// forgetful publishes nothing of what it deletes, and keeps nothing of what it is given.
type forgetful struct{ db *sql.DB }

func (f forgetful) publish(context.Context, *sql.Tx, order) error { return nil }
func (f forgetful) close() error                                  { return nil }
func (f forgetful) drain(ctx context.Context, _ message.Publisher) (int, error) {
	_, err := f.db.ExecContext(ctx, "DELETE FROM by_hand")
	return 0, err
}

func TestMeasure_OfAWayThatLoses_IsAnError(t *testing.T) {
	t.Parallel()
	way := ByHand
	way.open = func(ctx context.Context, db *sql.DB) (box, error) {
		_, err := ByHand.open(ctx, db)
		return forgetful{db}, err
	}
	_, err := MeasureDrain(t.Context(), t.TempDir(), way, 10)
	require.ErrorContains(t, err, "0 of 10 messages were published")
	_, err = MeasureCaller(t.Context(), t.TempDir(), way, 10*time.Millisecond)
	require.ErrorContains(t, err, "0 messages")
}
