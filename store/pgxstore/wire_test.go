package pgxstore_test

import (
	"context"
	"net"
	"sync/atomic"
	"testing"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/internal/pgtest"
	"github.com/watermill-outbox/outbox/store/pgxstore"
)

// countingConn counts what the server sends.
type countingConn struct {
	net.Conn
	received *atomic.Int64
}

func (c countingConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.received.Add(int64(n))
	return n, err
}

// A read asks for a number of rows, and takes as many as memory allows: the server sends the others in vain. Where payloads
// are large, few of those that were asked for must be sent twice.
func TestForwarder_ReadsLargePayloadsAboutOnce(t *testing.T) {
	t.Parallel()
	const messages, size = 400, 256 << 10
	schema := pgtest.Schema(t, pgtest.V15)
	config, err := pgxpool.ParseConfig(pgtest.V15.URL())
	require.NoError(t, err)
	var received atomic.Int64
	config.ConnConfig.DialFunc = func(ctx context.Context, kind, address string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, kind, address)
		return countingConn{conn, &received}, err
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	store, err := pgxstore.New(pool, pgxstore.WithSchema(schema))
	require.NoError(t, err)
	require.NoError(t, store.Migrate(t.Context()))
	pgtest.Exec(t, pgtest.V15, `
		INSERT INTO `+schema+`.outbox_messages (topic, key, payload)
		SELECT 'topic', i, convert_to(repeat('x', $2), 'UTF8') FROM generate_series(1, $1::int) i`, messages, size)

	received.Store(0)
	forwarder, err := outbox.NewForwarder(store, nopPublisher{}, outbox.WithLogger(watermill.NopLogger{}))
	require.NoError(t, err)
	n, err := forwarder.Drain(t.Context())
	require.NoError(t, err)
	require.Equal(t, messages, n)
	t.Logf("%.2f times their size", float64(received.Load())/(messages*size))
	require.Less(t, received.Load(), int64(1.5*messages*size), "bytes from the server")
	require.NoError(t, store.Close())
}
