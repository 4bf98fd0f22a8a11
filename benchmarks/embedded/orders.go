package embedded

import (
	"context"
	"database/sql"
	"fmt"
	"strconv"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
)

// order is what the application has to tell of one.
type order struct {
	uuid, key string
	payload   []byte
	metadata  message.Metadata
}

const (
	topic = "orders.placed"
	keys  = 10_000
)

// newOrder returns an order like those of fill.
func newOrder(n int) order {
	return order{
		uuid:     watermill.NewUUID(),
		key:      "order-" + strconv.Itoa(n%keys),
		payload:  fmt.Appendf(nil, `{"order": %d, "note": "%0100d"}`, n, n),
		metadata: message.Metadata{"correlation_id": strconv.FormatInt(int64(n)*0x9e3779b1, 16), "name": "OrderPlaced"},
	}
}

const createOrders = `
	CREATE TABLE orders (id INTEGER PRIMARY KEY AUTOINCREMENT, customer TEXT NOT NULL, total INTEGER NOT NULL)`

// fill commits a backlog of n messages.
func (w Way) fill(ctx context.Context, db *sql.DB, n int) error {
	_, err := db.ExecContext(ctx, fmt.Sprintf(`
		WITH RECURSIVE numbers (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM numbers WHERE i < ?)
		INSERT INTO %s (uuid, topic, key, payload, headers)
		SELECT lower(hex(randomblob(16))), '%s', 'order-' || (i %% %d),
		       CAST(printf('{"order": %%d, "note": "%%0100d"}', i, i) AS BLOB),
		       '{"correlation_id":"' || lower(hex(randomblob(8))) || '","name":"OrderPlaced"}'
		FROM numbers`, w.table, topic, keys), n)
	if err != nil {
		return err
	}
	_, err = db.ExecContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)")
	return err
}

func (w Way) count(ctx context.Context, db *sql.DB) (n int, err error) {
	if err := db.QueryRowContext(ctx, "SELECT count(*) FROM "+w.table).Scan(&n); err != nil {
		return 0, fmt.Errorf("count the messages: %w", err)
	}
	return n, nil
}

// check returns an error if there are not n orders, each with a message.
func (w Way) check(ctx context.Context, db *sql.DB, n int) error {
	var orders int
	if err := db.QueryRowContext(ctx, "SELECT count(*) FROM orders").Scan(&orders); err != nil {
		return fmt.Errorf("count the orders: %w", err)
	}
	messages, err := w.count(ctx, db)
	if err != nil {
		return err
	}
	if orders != n || messages != n {
		return fmt.Errorf("%d transactions have left %d orders and %d messages", n, orders, messages)
	}
	return nil
}
