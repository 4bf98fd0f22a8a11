package main

import (
	"context"
	"database/sql"
	"fmt"
	"io"
)

// report prints what came of the orders.
func report(ctx context.Context, db *sql.DB, out io.Writer) error {
	for _, line := range []struct{ format, query string }{
		{"%d orders requested", `SELECT count(*) FROM requests`},
		{"%d orders placed", `SELECT count(*) FROM orders`},
		{"%d invoices sent", `SELECT count(*) FROM invoices`},
		{"%d orders in the sales figures", `SELECT orders FROM sales`},
		{"%d in total", `SELECT amount FROM sales`},
		{"%d messages left in the outbox", `SELECT count(*) FROM outbox_messages`},
	} {
		var figure int
		if err := db.QueryRowContext(ctx, line.query).Scan(&figure); err != nil {
			return fmt.Errorf("%s: %w", line.query, err)
		}
		if _, err := fmt.Fprintf(out, line.format+"\n", figure); err != nil {
			return err
		}
	}
	return nil
}
