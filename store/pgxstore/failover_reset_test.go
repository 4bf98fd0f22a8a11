package pgxstore_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox/internal/pgtest"
	"github.com/watermill-outbox/outbox/store/pgxstore"
)

// Somebody empties the tables in the middle of a run, and has the ids begin anew.
func TestForwarder_ReadsFromTheBeginning_WhenTheTableIsTruncatedWithItsIdentity(t *testing.T) {
	s := newShopInSchema(t)
	s.relay(t, 2)
	s.openDoors(t, 8)
	s.awaitOrders(t, 300)
	_, err := s.pool.Exec(t.Context(), "TRUNCATE orders, outbox_messages RESTART IDENTITY")
	require.NoError(t, err)
	s.awaitOrders(t, 300)
	s.finish(t, true)
	require.Positive(t, s.givenAgain(), "ids that were given again")
}

// As many ids have been given again as there were before: nothing tells by the last one.
func TestForwarder_ReadsFromTheBeginning_WhenTheTableIsTruncatedAndFilledAgainAtOnce(t *testing.T) {
	s := newShopInSchema(t)
	s.relay(t, 2)
	_, err := s.pool.Exec(t.Context(), insertOrders(20, 10))
	require.NoError(t, err)
	s.awaitEmpty(t)
	_, err = s.pool.Exec(t.Context(), "TRUNCATE orders, outbox_messages RESTART IDENTITY;"+insertOrders(20, 20))
	require.NoError(t, err)
	s.finish(t, true)
	require.Equal(t, 200, s.givenAgain(), "ids that were given again")
}

// Somebody sets the sequence back by hand.
func TestForwarder_ReadsFromTheBeginning_WhenTheSequenceIsSetBack(t *testing.T) {
	s := newShopInSchema(t)
	s.relay(t, 2)
	_, err := s.pool.Exec(t.Context(), insertOrders(20, 20))
	require.NoError(t, err)
	s.awaitEmpty(t)
	_, err = s.pool.Exec(t.Context(), "SELECT setval('outbox_messages_id_seq', 1, false);"+insertOrders(20, 10))
	require.NoError(t, err)
	s.finish(t, false)
	require.Equal(t, 200, s.givenAgain(), "ids that were given again")
}

// All sessions of the application are terminated, again and again.
func TestForwarder_LosesNothing_WhenItsSessionsAreTerminated(t *testing.T) {
	s := newShopInSchema(t)
	s.relay(t, 2)
	s.openDoors(t, 8)
	times := 20
	if testing.Short() {
		times = 5
	}
	name := s.pool.Config().ConnConfig.RuntimeParams["application_name"]
	for range times {
		s.awaitOrders(t, 20)
		pgtest.Exec(t, pgtest.V15, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1", name)
		time.Sleep(100 * time.Millisecond) // not to wait for anything: that is how often
	}
	s.finish(t, false)
	require.LessOrEqual(t, len(s.logged()), times*2*2+2, "one of Claim and one of Settle for each time and instance")
}

// newShopInSchema makes a shop on a server that others use, too. Its sessions have a name of their own.
func newShopInSchema(t *testing.T) *shop {
	t.Helper()
	t.Parallel()
	schema := pgtest.Schema(t, pgtest.V15)
	url := fmt.Sprintf("%s?search_path=%s&application_name=%[2]s", pgtest.V15.URL(), schema)
	return newShop(t, url, pgxstore.WithSchema(schema))
}

// While a message is being published, its row's id is given to another, whose turn comes as well. What becomes of the one
// must not be taken for what becomes of the other: it would be deleted unpublished.
func TestForwarder_KeepsAMessageApartFromTheFormerOneOfItsID(t *testing.T) {
	s := newShopInSchema(t)
	former, latter := s.stop(1), s.stop(2)
	s.relay(t, 1)
	require.NoError(t, s.order(t.Context(), "key-1"))
	<-former.arrived
	_, err := s.pool.Exec(t.Context(), "TRUNCATE orders, outbox_messages RESTART IDENTITY; UPDATE counters SET n = 1")
	require.NoError(t, err)
	require.NoError(t, s.order(t.Context(), "key-2"))
	<-latter.arrived

	close(former.goOn)
	require.NoError(t, s.order(t.Context(), "key-3"))
	s.await(t, "the former one and a later one", func() bool { return len(s.deliveries) == 2 })
	for marked := false; !marked; { // the later one is marked after the former one
		keys, err := column[string](t.Context(), s.pool, "SELECT key FROM outbox_messages")
		require.NoError(t, err)
		require.Contains(t, keys, "key-2", "it was deleted unpublished")
		marked = !slices.Contains(keys, "key-3")
	}
	close(latter.goOn)
	s.finish(t, true)
}

// A key is known for longer than its payloads are kept, and those are read again by id: as it happens after the ids have
// begun anew, and before anybody has noticed.
func TestForwarder_ReadsByIDOnlyWhatIsOfTheSameHistory(t *testing.T) {
	s := newShopInSchema(t)
	stop := s.stop(64) // the last of those that are claimed at once
	_, err := s.pool.Exec(t.Context(), insertOrders(1, 200))
	require.NoError(t, err)
	s.relay(t, 1)
	<-stop.arrived
	s.mu.Lock()
	looks := s.looks
	s.mu.Unlock()
	s.await(t, "a look at the server, after which there is time until the next", func() bool { return s.looks > looks })
	_, err = s.pool.Exec(t.Context(), "TRUNCATE orders, outbox_messages RESTART IDENTITY; UPDATE counters SET n = 1000;"+
		insertOrders(1, 200))
	require.NoError(t, err)
	close(stop.goOn)
	s.finish(t, true)
}
