// Package billing is a service that bills orders. It does not know by what outbox they come.
package billing

import (
	"context"
	"database/sql"
	"encoding/json"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
)

type orderPlaced struct {
	Customer string `json:"customer"`
	Number   int    `json:"number"`
	Amount   int    `json:"amount"`
}

// Run bills the orders of a topic until ctx ends. An order that comes again is billed once.
func Run(ctx context.Context, db *sql.DB, subscriber message.Subscriber, topic string) error {
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NewSlogLogger(nil))
	if err != nil {
		return err
	}
	router.AddConsumerHandler("bill-order", topic, subscriber, func(msg *message.Message) error {
		var order orderPlaced
		if err := json.Unmarshal(msg.Payload, &order); err != nil {
			return err
		}
		const insert = `INSERT INTO bills (customer, number, amount) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`
		_, err := db.ExecContext(msg.Context(), insert, order.Customer, order.Number, order.Amount)
		return err
	})
	return router.Run(ctx)
}
