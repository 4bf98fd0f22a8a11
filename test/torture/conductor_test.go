//go:build linux

package torture_test

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox/internal/freeport"
	"github.com/watermill-outbox/outbox/internal/pgtest"
	"github.com/watermill-outbox/outbox/migrations"
	"github.com/watermill-outbox/outbox/store/pgxstore"
	"github.com/watermill-outbox/outbox/test/history"
	"github.com/watermill-outbox/outbox/test/kafkatest"
)

// The application's topics and its group, which package app has, too.
const (
	orders, events, bills = "orders", "events", "bills"
	group                 = "billing"
	aggregates            = 400
	// partitions of each topic. sarama asks for ten seconds no more where one is that it has not found three times: with few,
	// that would be all of them after each outage.
	partitions = 24
)

// conductor has the servers, the ways to them and the processes, and does them harm.
type conductor struct {
	t       *testing.T
	folder  string // of the records
	program string
	random  *rand.Rand
	network *network

	disk, otherDisk  *disk // of the primary and of the standby
	primary, standby *pgtest.Own
	pooler           *pooler
	kafka            *kafkatest.Server
	processes        []*process
	guest            *process // a relay that comes and goes
	started          bool     // all has been prepared, and nothing may end by itself any more but what cannot start
	faults           []fault
}

// Names of the ways to servers. Those of a process end in its server.
const (
	toDatabase = "/database"
	toKafka    = "/kafka"
	poolerWay  = "pooler" + toDatabase
)

func newConductor(t *testing.T, folder string) *conductor {
	t.Helper()
	c := &conductor{t: t, folder: folder, program: build(t), random: rand.New(rand.NewPCG(*seed, 0)), network: newNetwork(t)}
	c.disk, c.otherDisk = newDisk(t), newDisk(t)
	c.disk.use(t, func() { c.primary = pgtest.Start(t) })
	c.prepareDatabase()
	c.replicate()
	c.pooler = startPooler(t, c.network.link(poolerWay, c.primary.Host()))

	places := []struct {
		role, name string
		pooled     bool
	}{
		{"producer", "producer-0", false},
		{"producer", "producer-1", true},
		{"relay", "relay-0", false},
		{"relay", "relay-1", false},
		{"relay", "relay-2", true},
		{"relay", "guest", false},
		{"consumer", "consumer-0", false},
		{"consumer", "consumer-1", true},
	}
	var listeners []kafkatest.Listener
	for _, place := range places {
		upstream := c.primary.Host()
		if place.pooled {
			upstream = c.pooler.address
		}
		p := &process{role: place.role, name: place.name, pooled: place.pooled, arguments: []string{
			"-role", place.role, "-database", databaseURL(users[place.role], c.network.link(place.name+toDatabase, upstream), place.name, place.pooled),
			"-ttl", ttl.String(), "-rate", fmt.Sprint(*rate / 2), "-concurrency", fmt.Sprint(concurrency),
		}}
		if place.role != "producer" {
			l := kafkatest.Listener{Listen: freeport.Address(t)}
			l.Advertised = c.network.link(place.name+toKafka, l.Listen)
			listeners = append(listeners, l)
			p.arguments = append(p.arguments, "-kafka", l.Advertised)
		}
		if place.name == "guest" {
			c.guest = p
		} else {
			c.processes = append(c.processes, p)
		}
	}
	c.kafka = kafkatest.Start(t, listeners...)
	c.createTopics()
	return c
}

// users are the logins of the roles. Each has the privileges that docs/operations.md lists for it, and no more.
var users = map[string]string{"producer": "publishing", "relay": "relaying", "consumer": "handling"}

func databaseURL(user, host, name string, pooled bool) string {
	url := "postgres://" + user + "@" + host + "/postgres?connect_timeout=3&pool_max_conns=20&application_name=" + name
	if pooled {
		url += "&default_query_exec_mode=exec"
	}
	return url
}

// prepareDatabase makes the application's tables. Those of the outbox are made when processes run already.
func (c *conductor) prepareDatabase() {
	c.primary.Exec(c.t, fmt.Sprintf(`
		CREATE TABLE aggregates (id bigint PRIMARY KEY, version bigint NOT NULL DEFAULT 0) WITH (fillfactor = 10);
		INSERT INTO aggregates (id) SELECT generate_series(0, %d);
		CREATE TABLE sent (id text NOT NULL, key text NOT NULL, number bigint NOT NULL, topic text NOT NULL);
		CREATE TABLE effects (input text NOT NULL, output text NOT NULL);
		CREATE ROLE publishing LOGIN; CREATE ROLE relaying LOGIN; CREATE ROLE handling LOGIN;
		GRANT publishing TO handling; -- which publishes what handlers return
		GRANT SELECT, UPDATE ON aggregates TO publishing;
		GRANT INSERT ON sent TO publishing;
		GRANT INSERT ON effects TO handling`, aggregates-1))
}

// grant runs what docs/operations.md says about privileges.
func (c *conductor) grant() {
	page, err := os.ReadFile("../../docs/operations.md")
	require.NoError(c.t, err)
	_, section, _ := strings.Cut(string(page), "\n## Privileges\n")
	_, section, _ = strings.Cut(section, "```sql\n")
	statements, _, found := strings.Cut(section, "```")
	require.True(c.t, found, "the page has no statements")
	c.primary.Exec(c.t, statements)
}

// replicate starts a standby, which each commit waits for from then on.
func (c *conductor) replicate() {
	c.otherDisk.use(c.t, func() { c.standby = c.primary.Replica(c.t) })
	c.waitSync("ALTER SYSTEM SET synchronous_standby_names = '*'", "sync")
}

// waitSync changes a setting of the primary, and waits until the standby is what it makes of it.
func (c *conductor) waitSync(change, state string) {
	c.primary.Exec(c.t, change)
	c.primary.Exec(c.t, "SELECT pg_reload_conf()")
	require.Eventually(c.t, func() bool {
		var n int
		err := c.query("SELECT count(*) FROM pg_stat_replication WHERE sync_state = $1 AND state = 'streaming'", []any{state}, &n)
		return err == nil && n == 1
	}, patience, 20*time.Millisecond, "the standby does not follow")
}

// query asks the primary for one row, directly.
func (c *conductor) query(sql string, args []any, to ...any) error {
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, c.primary.URL())
	if err != nil {
		return err
	}
	defer conn.Close(ctx) //nolint:errcheck // it was only asked
	return conn.QueryRow(ctx, sql, args...).Scan(to...)
}

func (c *conductor) createTopics() {
	config := sarama.NewConfig()
	config.Version = sarama.V2_8_0_0
	admin, err := sarama.NewClusterAdmin([]string{c.kafka.Address}, config)
	require.NoError(c.t, err)
	defer admin.Close() //nolint:errcheck // it has answered
	appendTime, forever := "LogAppendTime", "-1"
	for _, topic := range []string{orders, events, bills} {
		require.NoError(c.t, admin.CreateTopic(topic, &sarama.TopicDetail{
			NumPartitions: partitions, ReplicationFactor: 1,
			ConfigEntries: map[string]*string{"message.timestamp.type": &appendTime, "retention.ms": &forever},
		}, false))
	}
}

func (c *conductor) run(p *process) { p.run(c.t, c.program, c.folder, *seed) }

// start starts all processes, and then makes the tables they need: some end and are started again meanwhile.
func (c *conductor) start() {
	for _, p := range c.processes {
		c.run(p)
	}
	c.migrate()
	c.grant()
	c.sleep(5 * time.Second)
	c.started = true
}

// migrate runs the migrations twice at once, as two instances of a deployment would. Then the tables of another outbox
// beside it come and go.
func (c *conductor) migrate() {
	ctx, cancel := context.WithTimeout(c.t.Context(), patience) // the standby may have been lost, which commits wait for
	defer cancel()
	c.migrateTwice(ctx)
	pool, err := pgxpool.New(ctx, c.primary.URL())
	require.NoError(c.t, err)
	defer pool.Close()
	db := stdlib.OpenDBFromPool(pool)
	defer db.Close() //nolint:errcheck // everything was committed
	const other = "other_"
	require.NoError(c.t, migrations.Up(ctx, db, "pgx", migrations.WithPrefix(other)))
	require.NoError(c.t, migrations.Down(ctx, db, "pgx", migrations.WithPrefix(other)))
}

func (c *conductor) migrateTwice(ctx context.Context) {
	results := make(chan error, 2)
	for range cap(results) {
		go func() {
			pool, err := pgxpool.New(ctx, c.primary.URL())
			if err == nil {
				defer pool.Close()
				var store *pgxstore.Store
				if store, err = pgxstore.New(pool); err == nil {
					err = store.Migrate(ctx)
				}
			}
			results <- err
		}()
	}
	for range cap(results) {
		require.NoError(c.t, <-results)
	}
}

// sleep waits, and replaces processes that have ended meanwhile.
func (c *conductor) sleep(d time.Duration) {
	c.t.Helper()
	for until := time.Now().Add(d); ; {
		for _, p := range c.processes {
			select {
			case err := <-p.ended:
				c.t.Logf("%s has ended: %v", p.incarnation(), err)
				if c.started {
					_ = p.checkEnd(c.t, err) // it could not start
				}
				c.run(p)
			default:
			}
		}
		left := time.Until(until)
		if left <= 0 {
			return
		}
		time.Sleep(min(left, 50*time.Millisecond))
	}
}

// settle ends the producers, and waits until all is published and handled.
func (c *conductor) settle() {
	c.t.Log("the faults are over")
	c.stop("producer")
	waiting, least, until := 0, math.MaxInt, time.Now().Add(patience)
	for ; ; c.sleep(200 * time.Millisecond) {
		err := c.query(`SELECT (SELECT count(*) FROM outbox_messages) +
			(SELECT count(*) FROM sent WHERE topic = 'orders') - (SELECT count(DISTINCT input) FROM effects)`, nil, &waiting)
		if err == nil && waiting == 0 {
			break
		}
		if err == nil && waiting < least {
			least, until = waiting, time.Now().Add(patience)
		}
		if time.Now().After(until) {
			c.t.Errorf("for %v, %d messages have not been published or not been handled (%v)", patience, waiting, err)
			break
		}
	}
	c.stop("relay")
	c.stop("consumer")
}

// stop ends the processes of a role gracefully.
func (c *conductor) stop(role string) {
	for _, p := range c.processes {
		if p.role == role {
			p.signal(syscall.SIGTERM)
			if err := p.wait(c.t); err != nil {
				c.t.Errorf("%s: %v", p.incarnation(), err)
			}
		}
	}
	c.processes = slices.DeleteFunc(c.processes, func(p *process) bool { return p.role == role })
}

// collect reads what all have recorded, and what is in the tables and in Kafka.
func (c *conductor) collect() *history.History {
	h := &history.History{
		Sent: map[string]history.Message{}, Slots: map[string]int{}, Concurrency: concurrency, Wanted: ordersAreBilled,
	}
	var err error
	h.Events, err = history.Read(c.folder)
	require.NoError(c.t, err)
	ctx := c.t.Context()
	conn, err := pgx.Connect(ctx, c.primary.URL())
	require.NoError(c.t, err)
	defer conn.Close(ctx) //nolint:errcheck // it was only asked
	rows, err := conn.Query(ctx, "SELECT id, key, number, topic FROM sent")
	require.NoError(c.t, err)
	var m history.Message
	_, err = pgx.ForEachRow(rows, []any{&m.ID, &m.Key, &m.Number, &m.Topic}, func() error {
		h.Sent[m.ID] = m
		return nil
	})
	require.NoError(c.t, err)
	rows, err = conn.Query(ctx, "SELECT DISTINCT key, (hashtextextended(key, 0) & 63)::int FROM sent WHERE key <> ''")
	require.NoError(c.t, err)
	var slot int
	_, err = pgx.ForEachRow(rows, []any{&m.Key, &slot}, func() error {
		h.Slots[m.Key] = slot
		return nil
	})
	require.NoError(c.t, err)
	rows, err = conn.Query(ctx, "SELECT input, output FROM effects")
	require.NoError(c.t, err)
	e := history.Effect{Group: group}
	_, err = pgx.ForEachRow(rows, []any{&e.ID, &e.Output}, func() error {
		h.Effects = append(h.Effects, e)
		return nil
	})
	require.NoError(c.t, err)
	require.NoError(c.t, conn.QueryRow(ctx, "SELECT (SELECT count(*) FROM outbox_messages) + (SELECT count(*) FROM outbox_archive)").Scan(&h.Left))
	h.Landings = c.landed(h.Sent)
	return h
}

// landed reads all topics.
func (c *conductor) landed(sent map[string]history.Message) (all []history.Landing) {
	client, err := sarama.NewClient([]string{c.kafka.Address}, sarama.NewConfig())
	require.NoError(c.t, err)
	defer client.Close() //nolint:errcheck // it was only asked
	consumer, err := sarama.NewConsumerFromClient(client)
	require.NoError(c.t, err)
	for _, topic := range []string{orders, events, bills} {
		for partition := range int32(partitions) {
			end, err := client.GetOffset(topic, partition, sarama.OffsetNewest)
			require.NoError(c.t, err)
			if end == 0 {
				continue
			}
			of, err := consumer.ConsumePartition(topic, partition, 0)
			require.NoError(c.t, err)
			for next := int64(0); next < end; {
				select {
				case m := <-of.Messages():
					next = m.Offset + 1
					all = append(all, landing(m, sent))
				case <-time.After(patience):
					c.t.Fatalf("partition %d of %s cannot be read from offset %d of %d on", partition, topic, next, end)
				}
			}
			require.NoError(c.t, of.Close())
		}
	}
	return all
}

func landing(m *sarama.ConsumerMessage, sent map[string]history.Message) history.Landing {
	id, key := "", string(m.Key)
	for _, h := range m.Headers {
		if string(h.Key) == "_watermill_message_uuid" {
			id = string(h.Value)
		}
	}
	if key == id {
		key = "" // which is what outbox.PartitionKey makes of none
	}
	l := history.Landing{ID: id, Topic: m.Topic, Partition: m.Partition, Offset: m.Offset, Time: m.Timestamp.UnixMilli()}
	if of, ok := sent[id]; ok {
		l.Altered = of.Difference(m.Topic, key, m.Value)
	}
	return l
}

// disk is a file system of a server's own, which can be filled. Where this user may not make one, it has no folder.
type disk struct{ folder string }

const diskSize = "8g"

func newDisk(t *testing.T) *disk {
	t.Helper()
	folder, err := os.MkdirTemp("", "outbox-disk-") //nolint:usetesting // the user postgres cannot enter a TempDir
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(folder)) })
	require.NoError(t, os.Chmod(folder, 0o711))
	if err := syscall.Mount("outbox-torture", folder, "tmpfs", 0, "mode=1777,size="+diskSize); err != nil {
		t.Logf("no disk will be full: a file system of a test's own takes the right to mount one (%v)", err)
		return &disk{}
	}
	t.Cleanup(func() { require.NoError(t, syscall.Unmount(folder, syscall.MNT_DETACH)) })
	return &disk{folder}
}

// use has fn create its temporary folders on the disk.
func (d *disk) use(t *testing.T, fn func()) {
	t.Helper()
	if d.folder != "" {
		before := os.Getenv("TMPDIR")
		t.Setenv("TMPDIR", d.folder)
		defer t.Setenv("TMPDIR", before)
	}
	fn()
}

// fill leaves nothing free, until empty.
func (d *disk) fill(t *testing.T) {
	t.Helper()
	var now syscall.Statfs_t
	require.NoError(t, syscall.Statfs(d.folder, &now))
	used := (now.Blocks - now.Bfree) * uint64(now.Bsize)
	require.NoError(t, syscall.Mount("", d.folder, "", syscall.MS_REMOUNT, fmt.Sprintf("size=%d", used+64<<10)))
}

func (d *disk) empty(t *testing.T) {
	t.Helper()
	require.NoError(t, syscall.Mount("", d.folder, "", syscall.MS_REMOUNT, "size="+diskSize))
}
