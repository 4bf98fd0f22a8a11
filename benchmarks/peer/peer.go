// Package peer has what the benchmarks compare: this project, and what people would pick instead. Each is configured as
// well as its own documentation allows, and says how.
package peer

import (
	"context"
	"database/sql"
	"errors"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Peer is a way to get messages out of a database transaction and to a broker.
type Peer struct {
	// Name tells it apart in results.
	Name string
	// About is what it is and how it is configured, for whoever reads the results: a sentence or two.
	About string
	// New makes an outbox of the peer's own kind in an empty or a used database; the program and each of its relays
	// makes one.
	New func(ctx context.Context, env Env) (Outbox, error)
	// Publisher makes a publisher to Kafka that is its own; nil is watermill-kafka's.
	Publisher func() (message.Publisher, error)
}

// Env is where a peer works.
type Env struct {
	URL  string        // of a PostgreSQL database that only the benchmarks use
	Pool *pgxpool.Pool // to it
	DB   *sql.DB       // to it, over the same driver
	// Topic is the broker's topic for all messages.
	Topic string
	// Concurrency is how many messages are on their way to the broker at once where the peer leaves that to the user.
	Concurrency int
}

// Message is what every peer is given: a UUID, a key that says which messages stay in order, and a payload, which is
// JSON.
type Message struct {
	UUID    string
	Key     string
	Payload []byte
}

// Outbox is a peer at work in one database. Commit may be called by many goroutines at once.
type Outbox interface {
	// Create makes what it needs in the database, anew and empty: what an earlier run has left is gone.
	Create(ctx context.Context) error
	// Commit runs one transaction that inserts a row of the application's own (InsertOrder, with the first message's key)
	// and the messages, in the way in which the peer's documentation would have it.
	Commit(ctx context.Context, msgs ...Message) error
	// Relay publishes what is committed until the context ends; then it returns nil. It runs in a process of its own.
	Relay(ctx context.Context, publisher message.Publisher) error
	// Close ends what New has begun.
	Close() error
}

// Filler is an Outbox that can commit a backlog faster than by Commit: by SQL, with the keys and payloads that Shape has.
type Filler interface {
	Fill(ctx context.Context, backlog Backlog) error
}

// Server is an Outbox whose relay is a program of somebody else's. It stays up between repetitions, since it is measured
// warm, and does nothing while it is paused.
type Server interface {
	// Start starts the program, paused, and warms it up.
	Start(ctx context.Context) error
	// Resume has it relay, and returns when it does.
	Resume(ctx context.Context) error
	Pause(ctx context.Context) error
	// Process is the pid of the program.
	Process() int
}

// InsertOrder is the statement of the application that every transaction begins with.
const InsertOrder = "INSERT INTO orders (customer, total) VALUES ($1, 4200)"

// CreateOrders makes its table.
const CreateOrders = `
	CREATE TABLE IF NOT EXISTS orders (
		id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer text NOT NULL, total bigint NOT NULL
	)`

// errNoOutbox is what the ceilings and floors return where an outbox would be.
var errNoOutbox = errors.New("it has no outbox")
