// Command quickstart shows the outbox at work, and checks that it keeps its promises while everything around it fails.
//
// An application, this process, saves records and publishes a message about each in the same transaction. A service,
// a second process, forwards the messages to a broker and handles them. Meanwhile transactions are rolled back, the
// broker is down for two seconds, the service is killed, and messages are delivered twice. At the end the tables tell
// whether every record that was saved was handled, once, and in order.
//
//	go run ./examples/quickstart
//
// The three functions below are all that a program of your own needs: [save] publishes, [forward] relays to the broker,
// [addHandler] consumes. The other files are for the experiment: demo.go is its course, input.go, application.go,
// service.go and broker.go those who take part, journal.go and check.go what comes of it.
package main

import (
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/store/sqlite"
)

const (
	topic       = "records.saved"
	poisonTopic = "records.poison" // nobody subscribes to it here, so that a message in it counts as lost
	numberField = "record_number"  // metadata: which record the message is about
)

// 1. Publish. save writes the record and the message about it in one transaction: both are there, or neither is. Some
// transactions are rolled back here, after all is written, to see that their messages go nowhere.
func save(ctx context.Context, store *sqlite.Store, r record) error {
	return store.InTx(ctx, func(ctx context.Context, tx *sql.Tx) error {
		const insert = `INSERT INTO records (number, key, data) VALUES (?, ?, ?)`
		if _, err := tx.ExecContext(ctx, insert, r.number, r.key, string(r.data)); err != nil {
			return err
		}
		msg := message.NewMessage(watermill.NewUUID(), message.Payload(r.data))
		msg.Metadata.Set(numberField, strconv.Itoa(r.number))
		outbox.SetKey(msg, r.key) // messages of one key stay in order
		if err := store.Publisher(tx).Publish(topic, msg); err != nil {
			return err
		}
		if r.isRolledBack() {
			return errRollback
		}
		return nil
	})
}

// 2. Forward. forward relays the messages of committed transactions to the broker, until ctx ends. Any publisher of
// Watermill will do as broker: Kafka's, NATS's, AMQP's.
func forward(ctx context.Context, store *sqlite.Store, broker message.Publisher, opts ...outbox.Option) error {
	forwarder, err := outbox.NewForwarder(store, broker, opts...)
	if err != nil {
		return err
	}
	return forwarder.Run(ctx)
}

// 3. Handle. addHandler subscribes to the broker. The Deduplicator begins a transaction for each message, in which it
// notes the message's UUID and the handler writes: a message that is delivered again finds its UUID there and has no
// second effect.
//
// The order of the middleware matters. PoisonQueue and Retry see the errors of what is inside them, so panics become
// errors inside of these; and each attempt needs a transaction of its own, so the Deduplicator comes last.
func addHandler(
	router *message.Router, store *sqlite.Store, broker message.Subscriber, opts ...outbox.DeduplicatorOption,
) error {
	poison, err := outbox.NewPublisher(store, outbox.WithOwnTx())
	if err != nil {
		return err
	}
	poisonQueue, err := middleware.PoisonQueue(poison, poisonTopic)
	if err != nil {
		return err
	}
	retry := middleware.Retry{
		MaxRetries: 5, InitialInterval: 50 * time.Millisecond, MaxInterval: time.Second, Multiplier: 2,
		ResetContextOnRetry: true,
	}
	dedup, err := outbox.NewDeduplicator(store.Processed(), "quickstart", opts...)
	if err != nil {
		return err
	}
	router.AddMiddleware(poisonQueue, retry.Middleware, middleware.Recoverer, dedup.Middleware)
	router.AddConsumerHandler("note-record", topic, broker, func(msg *message.Message) error {
		tx, ok := store.TxFromContext(msg.Context())
		if !ok {
			return errors.New("the message carries no transaction: is the Deduplicator among the middleware?")
		}
		const insert = `INSERT INTO handled (record) VALUES (?)`
		_, err := tx.ExecContext(msg.Context(), insert, msg.Metadata.Get(numberField))
		return err
	})
	return nil
}

func main() {
	var err error
	if settings, isService := os.LookupEnv(serviceEnv); isService {
		err = runService(settings)
	} else {
		err = runDemo()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		os.Exit(1)
	}
}

// runDemo reads the command line and runs the experiment, to its end or an interrupt.
func runDemo() error {
	var o options
	flag.StringVar(&o.input, "input", "", "`file` of records to save: a JSON object per line, or a JSON array of "+
		"objects (default: 2,000 flights)")
	flag.StringVar(&o.keyField, "key", "origin", "`field` of the records whose value is their key: records of one key "+
		"stay in order")
	flag.StringVar(&o.database, "db", "", "`file` to keep the SQLite database in (default: it is deleted)")
	flag.BoolVar(&o.verbose, "v", false, "show the logs of the outbox and of Watermill")
	flag.Parse()
	if flag.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q; see -h", flag.Arg(0))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return demo(ctx, o, os.Stdout)
}
