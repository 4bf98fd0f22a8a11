package peer

import (
	"context"
	"crypto/rand"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/watermill-outbox/outbox/benchmarks/measure"
	"github.com/watermill-outbox/outbox/internal/pgtest"
)

// debeziumEnv has a database of the test's own, and a topic.
func debeziumEnv(t *testing.T) (Env, *measure.Topic) {
	t.Helper()
	name := "bench_test_" + strings.ToLower(rand.Text()[:16])
	pgtest.Exec(t, pgtest.V15, "CREATE DATABASE "+name)
	t.Cleanup(func() { pgtest.Exec(t, pgtest.V15, "DROP DATABASE "+name) }) // which fails if a slot is left
	config, err := pgxpool.ParseConfig(pgtest.V15.URL())
	require.NoError(t, err)
	config.ConnConfig.Database = name
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	_, err = pool.Exec(t.Context(), CreateOrders)
	require.NoError(t, err)
	topic, err := measure.NewTopic(t.Context(), KafkaBrokers(), name, 2)
	require.NoError(t, err)
	t.Cleanup(func() { _ = topic.Close(context.Background()) })
	return Env{Pool: pool, Topic: topic.Name}, topic
}

func startDebezium(t *testing.T, env Env) *debezium {
	t.Helper()
	if testing.Short() {
		t.Skip("it starts a Kafka Connect")
	}
	jars, err := exec.Command("../../services/services", "debezium-jars").Output()
	require.NoError(t, err, "Debezium is not to be had")
	t.Setenv("BENCH_DEBEZIUM_JARS", strings.TrimSpace(string(jars)))
	outbox, err := Debezium.New(t.Context(), env)
	require.NoError(t, err)
	o, ok := outbox.(*debezium)
	require.True(t, ok)
	o.warmUps = 0
	t.Cleanup(func() { require.NoError(t, o.Close()) })
	require.NoError(t, o.Start(t.Context()))
	return o
}

func TestDebezium_RelaysWhatIsCommittedFromCreateOn(t *testing.T) {
	env, topic := debeziumEnv(t)
	o := startDebezium(t, env)
	shape := Shape{Size: 100, Keys: Uniform}
	for round := range 3 {
		require.NoError(t, topic.Empty(t.Context()))
		require.NoError(t, o.Create(t.Context()))
		require.NoError(t, o.Fill(t.Context(), Backlog{Shape: shape, N: 12_000}))
		require.NoError(t, o.Commit(t.Context(), shape.Message(12_000)))
		require.NoError(t, o.Resume(t.Context()))
		require.NoError(t, o.Commit(t.Context(), shape.Message(12_001), shape.Message(12_002)))
		requireNumbers(t, topic, 12_003)
		require.NoError(t, o.Pause(t.Context()))
		require.NoError(t, o.Commit(t.Context(), shape.Message(99_999)), "round %d", round)
	}
}

func requireNumbers(t *testing.T, topic *measure.Topic, n int) {
	t.Helper()
	require.Eventually(t, func() bool {
		count, err := topic.Count(t.Context())
		require.NoError(t, err)
		return count >= n
	}, time.Minute, 10*time.Millisecond)
	seen := map[int]bool{}
	require.NoError(t, topic.Each(t.Context(), func(value []byte, _ time.Time) error {
		number, err := NumberOf(value)
		require.Len(t, value, 100)
		seen[number] = true
		return err
	}))
	require.Len(t, seen, n)
	require.True(t, seen[0] && seen[n-1])
}

func TestDebezium_RelaysIDKeyAndPayloadAsTheyAre(t *testing.T) {
	env, topic := debeziumEnv(t)
	o := startDebezium(t, env)
	require.NoError(t, o.Create(t.Context()))
	require.NoError(t, o.Pause(t.Context()))
	require.NoError(t, o.Pause(t.Context()))
	require.NoError(t, o.Resume(t.Context())) // with a slot that it has created
	m := Message{UUID: "0190a3c1-7a4b-4c3d-8e2f-0123456789ab", Key: "order-7", Payload: []byte("{\"n\":\"\xff\x00ö\"}")}
	require.NoError(t, o.Commit(t.Context(), m))
	reader, err := kgo.NewClient(kgo.SeedBrokers(KafkaBrokers()...), kgo.ConsumeTopics(topic.Name), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	require.NoError(t, err)
	defer reader.Close()
	records := reader.PollFetches(t.Context()).Records()
	require.Len(t, records, 1)
	require.Equal(t, m.Key, string(records[0].Key))
	require.Equal(t, m.Payload, records[0].Value)
	require.Equal(t, []kgo.RecordHeader{{Key: "id", Value: []byte(m.UUID)}}, records[0].Headers)
}

func TestDebezium_LeavesNothing_WhenItIsClosedWhileItRelays(t *testing.T) {
	env, _ := debeziumEnv(t)
	o := startDebezium(t, env)
	require.NoError(t, o.Create(t.Context()))
	require.NoError(t, o.Resume(t.Context()))
	folder := o.connect.folder
	require.NoError(t, o.Close())
	require.NoDirExists(t, folder)
	require.Zero(t, o.Process())
	requireNoSlot(t, o)
}

func requireNoSlot(t *testing.T, o *debezium) {
	t.Helper()
	var left int
	require.NoError(t, o.env.Pool.QueryRow(t.Context(), "SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1", o.slot).Scan(&left))
	require.Zero(t, left)
}

func TestDebezium_SaysWhatItsProgramHasWritten_WhenThatFails(t *testing.T) {
	env, _ := debeziumEnv(t)
	o := startDebezium(t, env)
	require.NoError(t, o.Create(t.Context()))
	require.NoError(t, o.Pause(t.Context()))
	_, err := o.env.Pool.Exec(t.Context(), "DROP PUBLICATION debezium_outbox; DROP TABLE debezium_outbox")
	require.NoError(t, err)
	require.ErrorContains(t, o.Resume(t.Context()), "No table filters found")
	require.NoError(t, o.connect.command.Process.Kill())
	<-o.connect.ended
	require.ErrorContains(t, o.Pause(t.Context()), "has ended")
	require.NoError(t, o.Close())
	requireNoSlot(t, o)
}

func TestDebezium_SaysHowToStartIt_WithoutItsArchives(t *testing.T) {
	env, _ := debeziumEnv(t)
	t.Setenv("BENCH_DEBEZIUM_JARS", "")
	o, err := Debezium.New(t.Context(), env)
	require.NoError(t, err)
	server, ok := o.(Server)
	require.True(t, ok)
	require.ErrorContains(t, server.Start(t.Context()), "make bench")
	require.NoError(t, o.Close())
	t.Setenv("BENCH_DEBEZIUM_JARS", t.TempDir())
	require.ErrorContains(t, server.Start(t.Context()), "ClassNotFoundException")
	require.NoError(t, o.Close())
}
