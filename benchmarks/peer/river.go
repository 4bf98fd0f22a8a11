package peer

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
)

// River is river as a relay: a job for each message, inserted in the transaction, and a worker that publishes it. Its
// workers run side by side, which gives up the order within a key.
//
// The cooldown is also how seldom a client that inserts notifies those that work, which its transactions pay for: those who
// care for that more than for latency keep the default.
var (
	River        = riverPeer("river", riverCooldown)
	RiverDefault = riverPeer("river, FetchCooldown 100 ms", river.FetchCooldownDefault)
)

func riverPeer(name string, cooldown time.Duration) Peer {
	return Peer{
		Name: name,
		About: fmt.Sprintf("river over pgx, with LISTEN/NOTIFY: a job is inserted in the transaction by `InsertTx`, or by `InsertManyTx`, or from %d on by "+
			"`InsertManyFastTx`, and a worker publishes it; MaxWorkers %d and FetchPollInterval %s as in river's own benchmark, FetchCooldown %s (there 2ms, "+
			"100ms by default); completed jobs stay for 24 hours, the default", riverCopyFrom, riverWorkers, riverPoll, cooldown),
		New: func(_ context.Context, env Env) (Outbox, error) {
			config := &river.Config{FetchCooldown: cooldown, FetchPollInterval: max(riverPoll, cooldown), Logger: riverLogger}
			client, err := river.NewClient(riverpgxv5.New(env.Pool), config)
			return &riverOutbox{env: env, client: client, cooldown: cooldown}, err
		},
	}
}

const (
	// riverWorkers, riverPoll and riverCooldown are from https://riverqueue.com/docs/benchmarks and the program it is about.
	riverWorkers  = 2000
	riverPoll     = 20 * time.Millisecond
	riverCooldown = 2 * time.Millisecond
	// riverCopyFrom is from how many jobs on COPY is quicker than INSERT: it takes a round trip more.
	riverCopyFrom = 10
	// riverSoftStop is how long jobs may take that run when the relay is to end.
	riverSoftStop = 10 * time.Second
)

var riverLogger = slog.New(slog.DiscardHandler)

type riverOutbox struct {
	env      Env
	client   *river.Client[pgx.Tx] // which inserts only
	cooldown time.Duration
}

// publishArgs is a job: to publish a message.
type publishArgs struct {
	UUID    string `json:"uuid"`
	Topic   string `json:"topic"`
	Key     string `json:"key"`
	Payload []byte `json:"payload"` // as base64: jsonb would not keep the bytes of JSON
}

const publishKind = "publish"

func (publishArgs) Kind() string { return publishKind }

func (o *riverOutbox) args(m Message) publishArgs {
	return publishArgs{UUID: m.UUID, Topic: o.env.Topic, Key: m.Key, Payload: m.Payload}
}

type publishWorker struct {
	river.WorkerDefaults[publishArgs]

	publisher message.Publisher
}

func (w *publishWorker) Work(ctx context.Context, job *river.Job[publishArgs]) error {
	msg := message.NewMessageWithContext(ctx, job.Args.UUID, job.Args.Payload)
	setKey(msg, job.Args.Key)
	return w.publisher.Publish(job.Args.Topic, msg)
}

func (o *riverOutbox) Create(ctx context.Context) error {
	migrator, err := rivermigrate.New(riverpgxv5.New(o.env.Pool), &rivermigrate.Config{Logger: riverLogger})
	if err != nil {
		return err
	}
	if _, err := migrator.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
		return fmt.Errorf("making river's tables: %w", err)
	}
	_, err = o.env.Pool.Exec(ctx, "TRUNCATE river_job, river_leader, river_notification, river_queue RESTART IDENTITY")
	return err
}

func (o *riverOutbox) Commit(ctx context.Context, msgs ...Message) error {
	return pgx.BeginFunc(ctx, o.env.Pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, InsertOrder, msgs[0].Key); err != nil {
			return err
		}
		return o.insert(ctx, tx, msgs)
	})
}

func (o *riverOutbox) insert(ctx context.Context, tx pgx.Tx, msgs []Message) error {
	if len(msgs) == 1 {
		_, err := o.client.InsertTx(ctx, tx, o.args(msgs[0]), nil)
		return err
	}
	jobs := make([]river.InsertManyParams, len(msgs))
	for i, m := range msgs {
		jobs[i].Args = o.args(m)
	}
	if len(jobs) < riverCopyFrom {
		_, err := o.client.InsertManyTx(ctx, tx, jobs)
		return err
	}
	_, err := o.client.InsertManyFastTx(ctx, tx, jobs)
	return err
}

func (o *riverOutbox) Fill(ctx context.Context, backlog Backlog) error {
	_, err := o.env.Pool.Exec(ctx, fmt.Sprintf(`
		INSERT INTO river_job (args, kind, max_attempts, priority)
		SELECT jsonb_build_object('uuid', gen_random_uuid(), 'topic', $1::text, 'key', %s,
			'payload', translate(encode(convert_to(%s, 'UTF8'), 'base64'), E'\n', '')), $3, $4, $5
		FROM generate_series(0, $2::int - 1) i`, backlog.keySQL(), backlog.payloadSQL()),
		o.env.Topic, backlog.N, publishKind, river.MaxAttemptsDefault, river.PriorityDefault)
	if err != nil {
		return fmt.Errorf("filling river_job: %w", err)
	}
	return nil
}

func (o *riverOutbox) Relay(ctx context.Context, publisher message.Publisher) error {
	workers := river.NewWorkers()
	if err := river.AddWorkerSafely(workers, &publishWorker{publisher: publisher}); err != nil {
		return err
	}
	client, err := river.NewClient(riverpgxv5.New(o.env.Pool), &river.Config{
		FetchCooldown: o.cooldown, FetchPollInterval: max(riverPoll, o.cooldown), Logger: riverLogger,
		Queues:          map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: max(riverWorkers, o.env.Concurrency)}},
		SoftStopTimeout: riverSoftStop, Workers: workers,
	})
	if err != nil {
		return err
	}
	if err := client.Start(ctx); err != nil {
		return fmt.Errorf("starting river: %w", err)
	}
	<-client.Stopped() // once the context has ended and what ran then is done
	return nil
}

func (o *riverOutbox) Close() error { return nil }
