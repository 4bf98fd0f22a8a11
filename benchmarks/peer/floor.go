package peer

import (
	"context"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
)

// The floors of what the caller pays: the application's transaction alone, and with a row inserted by hand.
var (
	NoMessage = Peer{
		Name:  "no message",
		About: "a floor: the application's own INSERT in a transaction, and no message",
		New: func(_ context.Context, env Env) (Outbox, error) {
			return &floor{env: env, insert: func(context.Context, pgx.Tx, string, string, []Message) error { return nil }}, nil
		},
	}
	PlainInsert = Peer{
		Name:  "INSERT by hand",
		About: "a floor: the application's own INSERT in a transaction, and a plain INSERT into a table with a primary key",
		New: func(_ context.Context, env Env) (Outbox, error) {
			return &floor{env: env, insert: insertByHand}, nil
		},
	}
)

type floor struct {
	env    Env
	insert func(ctx context.Context, tx pgx.Tx, table, topic string, msgs []Message) error
}

func (f *floor) Create(ctx context.Context) error {
	_, err := f.env.Pool.Exec(ctx, `
		CREATE TABLE IF NOT EXISTS by_hand (
			id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, uuid text NOT NULL, topic text NOT NULL, key text NOT NULL,
			payload bytea NOT NULL, created_at timestamptz NOT NULL DEFAULT now()
		);
		TRUNCATE by_hand`)
	return err
}

func (f *floor) Commit(ctx context.Context, msgs ...Message) error {
	return pgx.BeginFunc(ctx, f.env.Pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, InsertOrder, msgs[0].Key); err != nil {
			return err
		}
		return f.insert(ctx, tx, "by_hand", f.env.Topic, msgs)
	})
}

func (f *floor) Relay(context.Context, message.Publisher) error { return errNoOutbox }
func (f *floor) Close() error                                   { return nil }
