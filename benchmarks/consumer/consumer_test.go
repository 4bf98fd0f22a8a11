package consumer

import (
	"context"
	crand "crypto/rand"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox/internal/pgtest"
)

func TestMessageOf_EveryTenthDelivery_IsOfAnEarlierMessage(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 1))
	const deliveries = 12_345
	seen := map[int]bool{}
	for n := range deliveries {
		m := messageOf(n, rng)
		require.Equal(t, n%10 == 9, seen[m], "delivery %d is of message %d", n, m)
		require.LessOrEqual(t, n-m, 1000)
		seen[m] = true
	}
	require.Len(t, seen, messagesIn(deliveries))
}

func TestRouterContext_HasWhatARouterGives_AndDoesNotEnd(t *testing.T) {
	t.Parallel()
	ctx, err := routerContext(t.Context())
	require.NoError(t, err)
	require.Equal(t, handlerName, message.HandlerNameFromCtx(ctx))
	require.Equal(t, topic, message.SubscribeTopicFromCtx(ctx))
	require.NoError(t, ctx.Err())
	require.Nil(t, ctx.Done())
}

// newPool returns a pool on a database that goes away with the test.
func newPool(t *testing.T) *pgxpool.Pool {
	t.Helper()
	name := "bench_test_" + strings.ToLower(crand.Text()[:16])
	pgtest.Exec(t, pgtest.V15, "CREATE DATABASE "+name)
	t.Cleanup(func() { pgtest.Exec(t, pgtest.V15, "DROP DATABASE "+name) })
	config, err := pgxpool.ParseConfig(pgtest.V15.URL())
	require.NoError(t, err)
	config.ConnConfig.Database = name
	config.MaxConns = 8
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return pool
}

func TestMeasure_EachWay_HasTheEffectsThatItPromises(t *testing.T) {
	pool := newPool(t)
	for _, way := range Ways {
		t.Run(way.Name, func(t *testing.T) {
			metrics, err := Measure(t.Context(), pool, way, 4, 200*time.Millisecond)
			require.NoError(t, err)
			require.Positive(t, metrics["handlers_per_s"])
			require.Positive(t, metrics["p50_ms"])
			require.GreaterOrEqual(t, metrics["p99_ms"], metrics["p50_ms"])
		})
	}
}

func TestMeasure_OfAWayThatLosesOrRepeats_IsAnError(t *testing.T) {
	pool := newPool(t)
	repeats := NoDeduplication
	repeats.repeats = false
	_, err := Measure(t.Context(), pool, repeats, 4, 100*time.Millisecond)
	require.ErrorContains(t, err, "effects")

	loses := WatermillDeduplicator
	loses.New = func(ctx context.Context, pool *pgxpool.Pool, handle Handle) (message.HandlerFunc, error) {
		first := true
		return WatermillDeduplicator.New(ctx, pool, func(ctx context.Context, tx pgx.Tx, msg *message.Message) error {
			if first {
				first = false
				return nil
			}
			return handle(ctx, tx, msg)
		})
	}
	_, err = Measure(t.Context(), pool, loses, 1, 100*time.Millisecond)
	require.ErrorContains(t, err, "effects")

	fails := NoDeduplication
	errOfHandler := errors.New("of the handler")
	fails.New = func(context.Context, *pgxpool.Pool, Handle) (message.HandlerFunc, error) {
		return func(*message.Message) ([]*message.Message, error) { return nil, errOfHandler }, nil
	}
	_, err = Measure(t.Context(), pool, fails, 4, time.Minute)
	require.ErrorIs(t, err, errOfHandler)

	_, err = Measure(t.Context(), pool, NoDeduplication, 9, time.Minute)
	require.ErrorContains(t, err, "too small")
}
