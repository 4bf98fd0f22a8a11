// Package history decides whether what an application with an outbox did, as a whole, is what was promised: its producers,
// relays and consumers record what they do while they are killed, frozen and cut off, and [Check] compares their records
// with what the broker and the tables have in the end.
//
// It knows no database and no broker, so that it can be tested with histories of a few lines.
package history

// Kind is what an [Event] tells of.
type Kind string

// What producers and consumers record of their transactions, and relays of their attempts to publish.
const (
	// Publishing tells which messages a transaction is about to publish, in one call.
	Publishing Kind = "publishing"
	// Committing tells that a transaction is about to commit. It may be left out.
	Committing Kind = "committing"
	// Committed and RolledBack tell how a transaction has ended. One without either has ended as the table says.
	Committed  Kind = "committed"
	RolledBack Kind = "rolled back"
	// Attempt is recorded by a relay before it hands a message to the broker's client, Acked when the broker has it.
	Attempt Kind = "attempt"
	Acked   Kind = "acked"
	// Gained and Dropped are what relays are told of their slots.
	Gained  Kind = "gained"
	Dropped Kind = "dropped"
)

// Event is one record. At is on the monotonic clock that all processes of the machine share, see [Now].
type Event struct {
	Kind     Kind      `json:"k"`
	At       int64     `json:"t"`
	Process  string    `json:"p,omitempty"`
	Tx       string    `json:"x,omitempty"`
	Messages []Message `json:"m,omitempty"`
	Slots    []int     `json:"s,omitempty"`
}

// Message is a message as its producer knows it.
type Message struct {
	ID  string `json:"i"` // its UUID
	Key string `json:"k,omitempty"`
	// Number is its place among all messages of its key, where something serializes the transactions that publish them;
	// zero where nothing does.
	Number int64 `json:"n,omitempty"`
	// Delay is how long after its Publish it is to be published at the earliest, in nanoseconds.
	Delay int64 `json:"d,omitempty"`
	// Topic is known of what was sent.
	Topic string `json:"o,omitempty"`
}

// Landing is a message in the broker.
type Landing struct {
	ID        string `json:"id"`
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Offset    int64  `json:"offset"`
	Time      int64  `json:"time"` // of the broker, in whatever unit
	// Altered tells what is not as it was sent: see [Message.Difference].
	Altered string `json:"altered,omitempty"`
}

// Effect is what a handler has written for a message.
type Effect struct {
	Group string `json:"group"`
	ID    string `json:"id"`
	// Output is the message that was published with it, empty if none was to be.
	Output string `json:"output"`
}

// History is all that is known in the end.
type History struct {
	Events []Event `json:"-"` // they are in the records
	// Sent has the messages of all transactions that have committed, by a table that they have written, too.
	Sent map[string]Message `json:"sent"`
	// Slots has the slot of each key, by the database.
	Slots    map[string]int `json:"slots"`
	Landings []Landing      `json:"landings"`
	Effects  []Effect       `json:"effects"`
	// Wanted tells which groups are to handle a message.
	Wanted func(l Landing) []string `json:"-"`
	// Left is how many rows are in the outbox after everything has come to rest.
	Left int `json:"left"`
	// Concurrency is how many calls of Publish a relay makes at once.
	Concurrency int `json:"concurrency"`
}
