// Package after is the service of package before once docs/moving-over.md was followed: watermill-outbox is its outbox.
// What is in moving.go, and its two .sql files, goes when all has moved.
package after

import (
	"context"
	"database/sql"
	"encoding/json"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/store/postgres"
)

// Orders takes orders.
type Orders struct {
	DB    *sql.DB
	Store *postgres.Store
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
	return o.Store.Publisher(tx, outbox.WithKeyFunc(partitionKey)), nil
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
