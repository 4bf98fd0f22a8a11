// Package before is a service that takes orders, in the manner of Watermill's documentation: components/forwarder over
// watermill-sql is its outbox, Kafka its broker. Package after is the same service once docs/moving-over.md was followed.
package before

import (
	"context"
	"database/sql"
	"encoding/json"

	"github.com/ThreeDotsLabs/watermill"
	watermillsql "github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/components/forwarder"
	"github.com/ThreeDotsLabs/watermill/message"
)

// Orders takes orders.
type Orders struct {
	DB    *sql.DB
	Topic string // of orders placed
}

type orderPlaced struct {
	Customer string `json:"customer"`
	Number   int    `json:"number"` // counts the orders of the customer
	Amount   int    `json:"amount"`
}

// Place takes an order and tells the others of it, in one transaction.
func (o Orders) Place(ctx context.Context, customer string, amount int) error {
	tx, err := o.DB.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // does nothing after Commit

	number, err := nextNumber(ctx, tx, customer)
	if err != nil {
		return err
	}
	payload, err := json.Marshal(orderPlaced{Customer: customer, Number: number, Amount: amount})
	if err != nil {
		return err
	}
	msg := message.NewMessage(watermill.NewUUID(), payload)
	msg.Metadata.Set("customer_id", customer)
	publisher, err := o.publisher(tx)
	if err != nil {
		return err
	}
	if err := publisher.Publish(o.Topic, msg); err != nil {
		return err
	}
	return tx.Commit()
}

// docs:begin publisher
func (o Orders) publisher(tx *sql.Tx) (message.Publisher, error) {
	publisher, err := watermillsql.NewPublisher(tx, watermillsql.PublisherConfig{
		SchemaAdapter: watermillsql.DefaultPostgreSQLSchema{},
	}, logger)
	if err != nil {
		return nil, err
	}
	return forwarder.NewPublisher(publisher, forwarder.PublisherConfig{ForwarderTopic: forwarderTopic}), nil
}

// docs:end publisher

// nextNumber locks the customer, so that one order of a customer is placed after the other.
func nextNumber(ctx context.Context, tx *sql.Tx, customer string) (number int, err error) {
	const lock = `SELECT orders + 1 FROM customers WHERE id = $1 FOR UPDATE`
	if err := tx.QueryRowContext(ctx, lock, customer).Scan(&number); err != nil {
		return 0, err
	}
	_, err = tx.ExecContext(ctx, `UPDATE customers SET orders = $2 WHERE id = $1`, customer, number)
	return number, err
}
