package pgxstore_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox/internal/pgtest"
	"github.com/watermill-outbox/outbox/store/pgxstore"
)

// primaryOf returns an address that leads to the one of some servers that takes writes.
func primaryOf(servers ...*pgtest.Own) string {
	hosts := ""
	for i, s := range servers {
		if i > 0 {
			hosts += ","
		}
		hosts += s.Host()
	}
	return "postgres://postgres@" + hosts + "/postgres?sslmode=disable&target_session_attrs=read-write"
}

// ownServers begins a test that starts servers. They have nothing in common, and wait most of the time.
func ownServers(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("it starts servers")
	}
	t.Parallel()
}

// A replica streams asynchronously, and is cut off; a thousand orders later the primary dies, and the replica is promoted.
// It gives ids again that were those of other messages.
func TestForwarder_LosesNothingThatTheNewPrimaryHas_WhenALaggingReplicaIsPromoted(t *testing.T) {
	ownServers(t)
	primary := pgtest.Start(t)
	replica := primary.Replica(t)
	s := newShop(t, primaryOf(primary, replica))
	s.relay(t, 2)
	s.openDoors(t, 8)
	s.awaitOrders(t, 300)
	replica.Exec(t, "ALTER SYSTEM SET primary_conninfo = ''")
	replica.Exec(t, "SELECT pg_reload_conf()")
	s.awaitOrders(t, 1200)
	primary.Stop(t, pgtest.Crash)
	replica.Promote(t)
	s.awaitOrders(t, 1200)
	s.finish(t, true)
	require.Greater(t, s.givenAgain(), 100, "ids that the new primary has given again")
	require.LessOrEqual(t, len(s.logged()), fewLines)
}

// The new primary has given more ids than the old one before the instances get to see it, so that its sequence does not
// look as if it had gone back.
func TestForwarder_ReadsFromTheBeginning_WhenTheNewPrimaryIsAheadAlready(t *testing.T) {
	ownServers(t)
	primary := pgtest.Start(t)
	replica := primary.Replica(t)
	s := newShop(t, primaryOf(primary, replica))
	s.relay(t, 2)
	s.openDoors(t, 4)
	s.awaitOrders(t, 100)
	s.closeDoors()
	replica.Exec(t, "ALTER SYSTEM SET primary_conninfo = ''")
	replica.Exec(t, "SELECT pg_reload_conf()")
	primary.Exec(t, insertOrders(20, 10))
	s.awaitEmpty(t)
	replica.Promote(t)
	replica.Exec(t, insertOrders(20, 20))
	primary.Stop(t, pgtest.Crash)
	s.finish(t, true)
	require.Greater(t, s.givenAgain(), 100, "ids that the new primary has given again")
}

// The old primary is restored from a dump into another server, which somebody writes to before the instances get there.
func TestForwarder_ReadsFromTheBeginning_WhenADumpWasRestoredIntoAnotherServer(t *testing.T) {
	ownServers(t)
	first, old, other := pgtest.Start(t), pgtest.Start(t), pgtest.Start(t)
	const ttl = 3 * time.Second // so that the leases last until another server answers
	s := newShop(t, primaryOf(first, old, other), pgxstore.WithLeaseTTL(ttl))
	old.Restore(t, first.Dump(t)) // so that the other one's tables will have the same numbers as its own
	first.Stop(t, pgtest.Crash)
	s.relay(t, 2)
	s.openDoors(t, 8)
	s.awaitOrders(t, 300)
	dump := old.Dump(t)
	s.awaitOrders(t, 100)
	s.closeDoors()
	s.awaitEmpty(t)
	other.Restore(t, dump)
	other.Exec(t, insertOrders(20, 50))
	old.Stop(t, pgtest.Crash)
	s.openDoors(t, 8)
	s.awaitOrders(t, 300)
	s.finish(t, true)
	require.Greater(t, s.givenAgain(), 50, "ids that the other server has given again")
	require.LessOrEqual(t, len(s.logged()), fewLines)
}

// The database itself goes back to a dump, while instances relay.
func TestForwarder_ReadsFromTheBeginning_WhenADumpWasRestoredIntoItsDatabase(t *testing.T) {
	ownServers(t)
	server := pgtest.Start(t)
	s := newShop(t, primaryOf(server))
	s.relay(t, 2)
	s.openDoors(t, 8)
	s.awaitOrders(t, 300)
	dump := server.Dump(t, "--clean")
	s.awaitOrders(t, 300)
	s.closeDoors() // or one of them and the restore may wait for each other
	server.Restore(t, append(dump, "SET search_path = public;"+insertOrders(20, 50)...))
	s.openDoors(t, 8)
	s.awaitOrders(t, 300)
	s.finish(t, true)
	require.Greater(t, s.givenAgain(), 50, "ids that were given again")
}

// The server crashes while transactions that have published are open, and others are prepared.
func TestForwarder_LosesNothing_WhenTheServerCrashes(t *testing.T) {
	ownServers(t)
	server := pgtest.Start(t)
	s := newShop(t, primaryOf(server), pgxstore.WithoutNotify()) // as transactions that are prepared need it
	s.relay(t, 2)
	s.openDoors(t, 8)
	s.awaitOrders(t, 300)
	for _, key := range []string{"held", "prepared"} {
		server.Exec(t, "INSERT INTO counters VALUES ($1, 0)", key)
	}
	held, err := s.pool.Begin(t.Context())
	require.NoError(t, err)
	require.NoError(t, s.orderIn(t.Context(), held, "held"))
	prepared, err := s.pool.Begin(t.Context())
	require.NoError(t, err)
	require.NoError(t, s.orderIn(t.Context(), prepared, "prepared"))
	_, err = prepared.Exec(t.Context(), "PREPARE TRANSACTION 'order'")
	require.NoError(t, err)
	s.awaitOrders(t, 300)

	server.Stop(t, pgtest.Crash)
	require.Error(t, held.Commit(t.Context()))
	_ = prepared.Rollback(t.Context()) // gives its connection back
	server.Start(t)
	s.awaitOrders(t, 300)
	server.Exec(t, "COMMIT PREPARED 'order'")
	require.NoError(t, s.order(t.Context(), "prepared"))
	s.awaitOrders(t, 100)
	s.finish(t, false)
	require.LessOrEqual(t, len(s.logged()), fewLines)
}

// The server has gone for longer than the leases last, and nobody relays meanwhile, nor does anybody try without end.
func TestForwarder_LosesNothing_WhenTheServerIsAwayForLongerThanALeaseLasts(t *testing.T) {
	ownServers(t)
	server := pgtest.Start(t)
	s := newShop(t, primaryOf(server))
	stop := s.stop(1)
	server.Exec(t, insertOrders(1, 10))
	s.relay(t, 2)
	<-stop.arrived
	s.openDoors(t, 8)
	s.awaitOrders(t, 300)
	server.Stop(t, pgtest.Fast)
	s.mu.Lock()
	dials, since := s.dials, time.Now()
	s.mu.Unlock()
	s.await(t, "the leases to end", func() bool { return s.lease() == 0 })
	close(stop.goOn) // what is behind it in its key must not go, nor count as having failed
	s.mu.Lock()
	dials = s.dials - dials
	s.mu.Unlock()
	// Two instances that each claim, mark and renew, more and more seldom.
	require.Less(t, dials, 40*int(1+time.Since(since)/time.Second), "connections tried")
	server.Start(t)
	s.awaitOrders(t, 300)
	s.finish(t, false)
	require.LessOrEqual(t, len(s.logged()), fewLines)
}

// fewLines is what an operator may have to read of a failover, on a machine that is busy.
const fewLines = 25

func TestForwarder_LosesNothing_WhenTheServerIsReadOnlyForAWhile(t *testing.T) {
	ownServers(t)
	server := pgtest.Start(t)
	s := newShop(t, "postgres://postgres@"+server.Host()+"/postgres?sslmode=disable")
	s.relay(t, 2)
	s.openDoors(t, 8)
	s.awaitOrders(t, 300)
	readOnly := func(value string) {
		server.Exec(t, "ALTER SYSTEM SET default_transaction_read_only = "+value)
		server.Exec(t, "SELECT pg_reload_conf()")
	}
	readOnly("on")
	s.await(t, "the leases to end", func() bool { return s.lease() == 0 })
	readOnly("off")
	s.awaitOrders(t, 300)
	s.finish(t, false)
	require.LessOrEqual(t, len(s.logged()), 30, "each instance tells of each look at the leases, until they end")
}

// An instance that is led to a standby says so, and goes on when that is promoted.
func TestForwarder_RefusesAStandby_UntilItIsPromoted(t *testing.T) {
	ownServers(t)
	primary := pgtest.Start(t)
	s := newShop(t, primaryOf(primary))
	replica := primary.Replica(t)
	s.openDoors(t, 4)
	s.awaitOrders(t, 100)
	s.closeDoors()
	s.pool.Close()
	s.url = "postgres://postgres@" + replica.Host() + "/postgres?sslmode=disable"
	s.pool = s.connect(t, nil)
	s.store = s.open(t, s.pool)
	s.relay(t, 2)
	s.await(t, "an error", func() bool { return len(s.errors) == 2 })
	for _, line := range s.logged() {
		require.Contains(t, line, "the server is a standby")
		require.Contains(t, line, "target_session_attrs=read-write")
	}
	primary.Stop(t, pgtest.Fast) // the replica has everything then
	replica.Promote(t)
	s.openDoors(t, 4)
	s.awaitOrders(t, 100)
	s.finish(t, false)
	require.LessOrEqual(t, len(s.logged()), fewLines)
}
