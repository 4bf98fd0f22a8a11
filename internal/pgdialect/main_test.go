package pgdialect

import (
	"database/sql"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/watermill-outbox/outbox/internal/pgtest"
	"github.com/watermill-outbox/outbox/migrations"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// migrated returns a schema with the tables.
func migrated(t *testing.T, server pgtest.Server) string {
	t.Helper()
	schema := pgtest.Schema(t, server)
	db, err := sql.Open("pgx", server.URL())
	require.NoError(t, err)
	defer func() { assert.NoError(t, db.Close()) }()
	require.NoError(t, migrations.Up(t.Context(), db, "pgx", migrations.WithSchema(schema)))
	return schema
}
