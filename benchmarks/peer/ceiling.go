package peer

import (
	"context"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kgo"
)

// The ceilings: what a client of Kafka's publishes where no database is involved. Their relays make the messages before
// they publish the first.
var (
	WatermillKafka = Peer{
		Name:  "watermill-kafka",
		About: "a ceiling: as many goroutines as the relays have publish messages that were made before with watermill-kafka, one a call; no database",
		New: func(_ context.Context, env Env) (Outbox, error) {
			return &ceiling{env: env, relay: relayGenerated}, nil
		},
	}
	FranzGo = Peer{
		Name:  "franz-go",
		About: "a ceiling: one goroutine produces messages that were made before with franz-go, asynchronously, `acks=all`, idempotent, no compression; no database",
		New: func(_ context.Context, env Env) (Outbox, error) {
			return &ceiling{env: env, relay: relayByFranz}, nil
		},
	}
)

// ceiling is a Filler: what it is filled with, it publishes.
type ceiling struct {
	env   Env
	relay func(ctx context.Context, env Env, msgs []Message, publisher message.Publisher) error
}

func (c *ceiling) Create(ctx context.Context) error {
	_, err := c.env.Pool.Exec(ctx, "CREATE TABLE IF NOT EXISTS generated (n int NOT NULL, size int NOT NULL, keys text NOT NULL); TRUNCATE generated")
	return err
}

func (c *ceiling) Fill(ctx context.Context, b Backlog) error {
	_, err := c.env.Pool.Exec(ctx, "INSERT INTO generated VALUES ($1, $2, $3)", b.N, b.Size, b.Keys)
	return err
}

func (c *ceiling) Commit(context.Context, ...Message) error { return errNoOutbox }

func (c *ceiling) Relay(ctx context.Context, publisher message.Publisher) error {
	var b Backlog
	if err := c.env.Pool.QueryRow(ctx, "SELECT n, size, keys FROM generated").Scan(&b.N, &b.Size, &b.Keys); err != nil {
		return err
	}
	msgs := make([]Message, b.N)
	for n := range msgs {
		msgs[n] = b.Message(n)
	}
	if err := c.relay(ctx, c.env, msgs, publisher); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

func (c *ceiling) Close() error { return nil }

func relayGenerated(_ context.Context, env Env, msgs []Message, publisher message.Publisher) error {
	var next atomic.Int64
	var all sync.WaitGroup
	errs := make(chan error, env.Concurrency)
	for range env.Concurrency {
		all.Go(func() {
			for n := next.Add(1) - 1; n < int64(len(msgs)); n = next.Add(1) - 1 {
				if err := publisher.Publish(env.Topic, watermillMessages(msgs[n:n+1], setKey)...); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	all.Wait()
	close(errs)
	return <-errs
}

func relayByFranz(ctx context.Context, env Env, msgs []Message, _ message.Publisher) error {
	client, err := newFranzClient()
	if err != nil {
		return err
	}
	defer client.Close()
	var failed atomic.Pointer[error]
	for _, m := range msgs {
		record := &kgo.Record{
			Topic: env.Topic, Key: []byte(m.Key), Value: m.Payload,
			Headers: []kgo.RecordHeader{{Key: "_watermill_message_uuid", Value: []byte(m.UUID)}},
		}
		client.Produce(ctx, record, func(_ *kgo.Record, err error) {
			if err != nil {
				failed.Store(&err)
			}
		})
	}
	if err := client.Flush(ctx); err != nil {
		return err
	}
	if err := failed.Load(); err != nil {
		return *err
	}
	return nil
}

// KafkaBrokers are the addresses that the environment names, as for Watermill's own tests, or those of services/services.
func KafkaBrokers() []string {
	if brokers := os.Getenv("WATERMILL_TEST_KAFKA_BROKERS"); brokers != "" {
		return strings.Split(brokers, ",")
	}
	return []string{"127.0.0.1:" + strconv.Itoa(kafkaPort)}
}

const kafkaPort = 19092
