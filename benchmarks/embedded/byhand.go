package embedded

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/watermill-outbox/outbox"
)

// ByHand is the table and the loop that people write, with everything prepared.
var ByHand = Way{
	Name: "by hand",
	About: "a table with a primary key, an `INSERT` in the caller's transaction, and a loop that in a transaction reads " +
		"1,000 rows `ORDER BY id`, publishes each and deletes them by the last id, with prepared statements; " +
		"`synchronous=FULL`, the database opened by `sqlite.Open` too",
	table: "by_hand",
	open: func(ctx context.Context, db *sql.DB) (box, error) {
		_, err := db.ExecContext(ctx, `
			CREATE TABLE by_hand (
				id INTEGER PRIMARY KEY AUTOINCREMENT, uuid TEXT NOT NULL, topic TEXT NOT NULL, key TEXT NOT NULL,
				payload BLOB NOT NULL, headers TEXT NOT NULL, created_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
			)`)
		return &byHand{db}, err
	},
}

type byHand struct{ db *sql.DB }

func (h *byHand) publish(ctx context.Context, tx *sql.Tx, order order) error {
	headers, err := json.Marshal(order.metadata)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, "INSERT INTO by_hand (uuid, topic, key, payload, headers) VALUES (?, ?, ?, ?, ?)",
		order.uuid, topic, order.key, order.payload, string(headers))
	return err
}

func (h *byHand) close() error { return nil }

const batch = 1000

func (h *byHand) drain(ctx context.Context, publisher message.Publisher) (published int, err error) {
	read, err := h.db.PrepareContext(ctx, "SELECT id, uuid, topic, key, payload, headers FROM by_hand ORDER BY id LIMIT ?")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, read.Close()) }()
	remove, err := h.db.PrepareContext(ctx, "DELETE FROM by_hand WHERE id <= ?")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, remove.Close()) }()
	for {
		n, err := h.relay(ctx, read, remove, publisher)
		if err != nil || n == 0 {
			return published, err
		}
		published += n
	}
}

// relay publishes one batch.
func (h *byHand) relay(ctx context.Context, read, remove *sql.Stmt, publisher message.Publisher) (n int, err error) {
	tx, err := h.db.BeginTx(ctx, nil)
	if err != nil {
		return 0, err
	}
	defer tx.Rollback() //nolint:errcheck // it does nothing after a commit
	last, n, err := publishBatch(ctx, tx.StmtContext(ctx, read), publisher)
	if err != nil || n == 0 {
		return 0, err
	}
	_, err = tx.StmtContext(ctx, remove).ExecContext(ctx, last) //nolint:sqlclosecheck // it ends with the transaction
	if err != nil {
		return 0, err
	}
	return n, tx.Commit()
}

func publishBatch(ctx context.Context, read *sql.Stmt, publisher message.Publisher) (last int64, n int, err error) {
	rows, err := read.QueryContext(ctx, batch)
	if err != nil {
		return 0, 0, err
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells more
	for ; rows.Next(); n++ {
		var uuid, topic, key string
		var payload, headers []byte
		if err := rows.Scan(&last, &uuid, &topic, &key, &payload, &headers); err != nil {
			return 0, 0, err
		}
		msg := message.NewMessage(uuid, payload)
		if err := json.Unmarshal(headers, &msg.Metadata); err != nil {
			return 0, 0, fmt.Errorf("the headers of message %d: %w", last, err)
		}
		outbox.SetKey(msg, key)
		if err := publisher.Publish(topic, msg); err != nil {
			return 0, 0, err
		}
	}
	return last, n, rows.Err()
}
