package pgxstore_test

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// A sequence that nobody has used says that its last value is 1, and means that 1 comes next. Whoever takes it may be late
// like anybody else, however often an idle instance has looked before.
func TestForwarder_KeepsOrder_WhenTheFirstIDOfASequenceComesLate(t *testing.T) {
	t.Parallel()
	for name, begin := range map[string]func(t *testing.T, s *shop){
		"fresh tables": func(*testing.T, *shop) {},
		"TRUNCATE RESTART IDENTITY": func(t *testing.T, s *shop) {
			t.Helper()
			s.beginAnew(t, "TRUNCATE orders, outbox_messages RESTART IDENTITY; UPDATE counters SET n = 0")
		},
		"setval(..., 1, false)": func(t *testing.T, s *shop) {
			t.Helper()
			s.beginAnew(t, "SELECT setval('outbox_messages_id_seq', 1, false); DELETE FROM orders; UPDATE counters SET n = 0")
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newShopInSchema(t)
			s.relay(t, 1)
			begin(t, s)
			s.awaitLooks(t, 2)
			s.mu.Lock()
			before := len(s.deliveries)
			s.mu.Unlock()

			late, err := s.pool.Begin(t.Context())
			require.NoError(t, err)
			defer late.Rollback(t.Context()) //nolint:errcheck // it has been committed by then
			require.NoError(t, s.orderIn(t.Context(), late, "key-1"))
			var first int64
			require.NoError(t, late.QueryRow(t.Context(), "SELECT min(id) FROM outbox_messages").Scan(&first))
			require.EqualValues(t, 1, first)
			require.NoError(t, s.order(t.Context(), "key-2"))
			s.await(t, "the message behind it", func() bool { return len(s.deliveries) == before+1 })
			require.NoError(t, late.Commit(t.Context()))
			require.NoError(t, s.order(t.Context(), "key-1"))
			s.finish(t, true) // which no sweep helps
			var order []string
			for _, d := range s.deliveries[before:] {
				order = append(order, d.key)
			}
			require.Equal(t, []string{"key-2", "key-1", "key-1"}, order)
		})
	}
}

// beginAnew has ids begin anew, after a few, and waits until the instance relays again.
func (s *shop) beginAnew(t *testing.T, statements string) {
	t.Helper()
	_, err := s.pool.Exec(t.Context(), insertOrders(shopKeys, 1))
	require.NoError(t, err)
	s.awaitEmpty(t)
	_, err = s.pool.Exec(t.Context(), statements)
	require.NoError(t, err)
	s.await(t, "the leases to go", func() bool { return s.lease() == 0 })
	s.await(t, "the leases to come back", func() bool { return s.lease() > 0 })
}

// awaitLooks waits until the instances, which are idle, have looked n times who holds the sequence.
func (s *shop) awaitLooks(t *testing.T, n int) {
	t.Helper()
	s.mu.Lock()
	n += s.looks
	s.mu.Unlock()
	s.await(t, "looks", func() bool { return s.looks >= n })
}
