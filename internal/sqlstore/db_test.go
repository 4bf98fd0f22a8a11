package sqlstore

import (
	"context"
	"database/sql"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
)

// rewriting embeds a transaction and does something else with statements, as bun.Tx does.
type rewriting struct{ *sql.Tx }

func (rewriting) ExecContext(context.Context, string, ...any) (sql.Result, error) {
	panic("statements are for the database as they are")
}

func TestAsTx_TakesTheTransactionThatAStructEmbeds(t *testing.T) {
	inner := &sql.Tx{}
	for _, tx := range []any{inner, rewriting{inner}, &rewriting{inner}} {
		conn, err := new(SQLDB).AsTx(tx)
		require.NoError(t, err)
		require.Same(t, inner, conn.(sqlConn).q)
	}
	for _, tx := range []any{(*sql.Tx)(nil), rewriting{}, (*rewriting)(nil)} {
		_, err := new(SQLDB).AsTx(tx)
		require.ErrorIs(t, err, outbox.ErrInvalidTx, "%T", tx)
	}
}
