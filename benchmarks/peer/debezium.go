package peer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"

	"github.com/watermill-outbox/outbox/benchmarks/measure"
)

// Debezium is Debezium's connector for PostgreSQL with its outbox event router.
var Debezium = Peer{
	Name:  "Debezium",
	About: aboutDebezium,
	New: func(ctx context.Context, env Env) (Outbox, error) {
		o := &debezium{env: env, warmUps: warmUps}
		err := env.Pool.QueryRow(ctx, "SELECT 'debezium_' || oid FROM pg_database WHERE datname = current_database()").Scan(&o.slot)
		return o, err
	},
}

// debezium has its slot from Create to Pause only: one that nobody reads keeps the log of all that other peers write, and
// its reader has to go through that.
type debezium struct {
	env     Env
	slot    string // by the database, since the names of slots are the server's
	connect kafkaConnect
	warmUps int
}

// The table is the one of Debezium's documentation, with bytes for a payload.
const (
	createDebeziumTable = `
		CREATE TABLE IF NOT EXISTS debezium_outbox (
			id uuid PRIMARY KEY, aggregatetype text NOT NULL, aggregateid text NOT NULL, type text NOT NULL, payload bytea NOT NULL
		);
		TRUNCATE debezium_outbox`
	createDebeziumPublication = `
		DROP PUBLICATION IF EXISTS debezium_outbox;
		CREATE PUBLICATION debezium_outbox FOR TABLE debezium_outbox WITH (publish = 'insert')`
	insertForDebezium = `
		INSERT INTO debezium_outbox (id, aggregatetype, aggregateid, type, payload) VALUES ($1, $2, $3, 'created', $4)`
	insertManyForDebezium = `
		INSERT INTO debezium_outbox (id, aggregatetype, aggregateid, type, payload)
		SELECT id, $2, key, 'created', payload FROM unnest($1::uuid[], $3::text[], $4::bytea[]) AS m (id, key, payload)`
)

func (o *debezium) Create(ctx context.Context) error {
	if _, err := o.env.Pool.Exec(ctx, createDebeziumTable); err != nil {
		return err
	}
	if relays, err := o.relays(ctx); err != nil || relays {
		return err
	}
	if err := o.dropSlot(ctx); err != nil {
		return err
	}
	// In this order: what is read from the log is looked up in the catalog as it was then.
	if _, err := o.env.Pool.Exec(ctx, createDebeziumPublication); err != nil {
		return err
	}
	if _, err := o.env.Pool.Exec(ctx, "SELECT pg_create_logical_replication_slot($1, 'pgoutput')", o.slot); err != nil {
		return fmt.Errorf("creating a replication slot for Debezium: %w", err)
	}
	return nil
}

// relays tells whether the program reads from the slot.
func (o *debezium) relays(ctx context.Context) (bool, error) {
	var relays bool
	err := o.env.Pool.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1 AND active)", o.slot).Scan(&relays)
	return relays, err
}

func (o *debezium) dropSlot(ctx context.Context) error {
	_, err := o.env.Pool.Exec(ctx, "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1", o.slot)
	return err
}

func (o *debezium) Commit(ctx context.Context, msgs ...Message) error {
	return pgx.BeginFunc(ctx, o.env.Pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, InsertOrder, msgs[0].Key); err != nil {
			return err
		}
		if len(msgs) == 1 {
			_, err := tx.Exec(ctx, insertForDebezium, msgs[0].UUID, o.env.Topic, msgs[0].Key, msgs[0].Payload)
			return err
		}
		ids, keys, payloads := make([]string, len(msgs)), make([]string, len(msgs)), make([][]byte, len(msgs))
		for i, m := range msgs {
			ids[i], keys[i], payloads[i] = m.UUID, m.Key, m.Payload
		}
		_, err := tx.Exec(ctx, insertManyForDebezium, ids, o.env.Topic, keys, payloads)
		return err
	})
}

// fillAtOnce is how many messages of a backlog a transaction commits. The server sends what it has read from the log when
// it comes to the commit, and writes what exceeds 64 MB to disk until then.
const fillAtOnce = 10_000

func (o *debezium) Fill(ctx context.Context, backlog Backlog) error {
	insert := fmt.Sprintf(`
		INSERT INTO debezium_outbox (id, aggregatetype, aggregateid, type, payload)
		SELECT gen_random_uuid(), $1, %s, 'created', convert_to(%s, 'UTF8') FROM generate_series($2::int, $3::int) i`,
		backlog.keySQL(), backlog.payloadSQL())
	for n := 0; n < backlog.N; n += fillAtOnce {
		if _, err := o.env.Pool.Exec(ctx, insert, o.env.Topic, n, min(n+fillAtOnce, backlog.N)-1); err != nil {
			return err
		}
	}
	return nil
}

func (o *debezium) Relay(context.Context, message.Publisher) error {
	return errors.New("the relay of Debezium is a program of its own")
}

func (o *debezium) Start(ctx context.Context) error {
	if err := o.clean(ctx); err != nil { // of a benchmark that was killed
		return err
	}
	if err := o.connect.start(ctx, debeziumSettings(o.env.Pool.Config().ConnConfig.Config, o.slot)); err != nil {
		return err
	}
	for range o.warmUps {
		if err := o.warmUp(ctx); err != nil {
			return errors.Join(fmt.Errorf("warming up Debezium: %w", err), o.Close())
		}
	}
	return nil
}

// The warm-up has the Java machine compile what it runs often. CPU seconds per million messages were 43, 23, 16, 15 and
// 13.5 in its first five.
var warmUp = Backlog{Shape: Shape{Size: 200, Keys: Uniform}, N: 300_000}

const warmUps = 4

func (o *debezium) warmUp(ctx context.Context) error {
	const partitions = 8
	topic, err := measure.NewTopic(ctx, KafkaBrokers(), "debezium-warmup-"+watermill.NewShortUUID(), partitions)
	if err != nil {
		return err
	}
	defer topic.Close(context.WithoutCancel(ctx)) //nolint:errcheck // nobody minds a topic that is left
	warm := &debezium{env: o.env, slot: o.slot}
	warm.env.Topic = topic.Name
	if err := warm.Create(ctx); err != nil {
		return err
	}
	if err := warm.Fill(ctx, warmUp); err != nil {
		return err
	}
	if err := o.Resume(ctx); err != nil {
		return err
	}
	const atMost = 2 * time.Minute
	err = await(ctx, atMost, func(ctx context.Context) (bool, error) {
		n, err := topic.Count(ctx)
		return n >= warmUp.N, err
	})
	if err != nil {
		return err
	}
	return o.Pause(ctx)
}

func (o *debezium) Resume(ctx context.Context) error {
	if err := o.connect.resume(ctx); err != nil {
		return err
	}
	return o.awaitRelaying(ctx, true)
}

// Pause forgets what is not relayed yet.
func (o *debezium) Pause(ctx context.Context) error {
	if err := o.connect.pause(ctx); err != nil {
		return err
	}
	if err := o.awaitRelaying(ctx, false); err != nil {
		return err
	}
	return o.dropSlot(ctx)
}

func (o *debezium) awaitRelaying(ctx context.Context, relaying bool) error {
	const atMost = time.Minute
	err := await(ctx, atMost, func(ctx context.Context) (bool, error) {
		relays, err := o.relays(ctx)
		return relays == relaying, err
	})
	if err != nil {
		return fmt.Errorf("waiting for Debezium to take or leave its replication slot: %w", err)
	}
	return nil
}

func (o *debezium) Process() int { return o.connect.pid() }

func (o *debezium) Close() error {
	const atMost = time.Minute
	ctx, cancel := context.WithTimeout(context.Background(), atMost)
	defer cancel()
	return errors.Join(o.connect.stop(), o.clean(ctx))
}

// clean drops what is left in the database when the program has ended, in whatever way.
func (o *debezium) clean(ctx context.Context) error {
	_, err := o.env.Pool.Exec(ctx, "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1 AND active", o.slot)
	if err != nil {
		return err
	}
	if err := o.awaitRelaying(ctx, false); err != nil {
		return err
	}
	if err := o.dropSlot(ctx); err != nil {
		return err
	}
	_, err = o.env.Pool.Exec(ctx, "DROP PUBLICATION IF EXISTS debezium_outbox")
	return err
}

// await asks until it is so.
func await(ctx context.Context, atMost time.Duration, isSo func(context.Context) (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, atMost)
	defer cancel()
	const often = 10 * time.Millisecond
	for ticks := time.NewTicker(often); ; {
		if so, err := isSo(ctx); err != nil || so {
			ticks.Stop()
			return err
		}
		select {
		case <-ticks.C:
		case <-ctx.Done():
			ticks.Stop()
			return ctx.Err()
		}
	}
}
