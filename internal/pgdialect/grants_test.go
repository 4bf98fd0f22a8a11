package pgdialect

import (
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox/internal/pgtest"
)

// roles are what a process may be there for, with all the privileges that it needs beside USAGE on the schema.
var roles = []struct {
	name       string
	privileges []string
	runs       []string
}{
	{
		name:       "producer",
		privileges: []string{"INSERT ON outbox_messages"},
		runs: []string{
			"insert('u', 't', 'k', '', '{}', NULL)",
			`insert_many('{u}', '{t}', '{k}', '{x}', '{"{}"}', '{""}')`,
		},
	},
	{
		name: "relay",
		privileges: []string{
			"SELECT ON outbox_messages", "UPDATE ON outbox_messages", "DELETE ON outbox_messages",
			"INSERT ON outbox_messages", // to requeue
			"SELECT ON outbox_messages_id_seq",
			"SELECT ON outbox_archive", "INSERT ON outbox_archive", "UPDATE ON outbox_archive", "DELETE ON outbox_archive",
			"SELECT ON outbox_slots", "UPDATE ON outbox_slots",
			"SELECT ON outbox_relays", "INSERT ON outbox_relays", "UPDATE ON outbox_relays", "DELETE ON outbox_relays",
			"SELECT ON outbox_processed", // to check the schema
		},
		runs: []string{
			"check", "check_settings", "check_values", "check_sequence('SCHEMA.outbox_messages', 'SCHEMA.outbox_messages_id_seq')", "holders", "relay_beat('a', 1)", "relays_live", "slots_list",
			"slots_take('a', 1, '{1}')", "slots_renew('a', 1, '{1}')", "slots_give('a', '{1}')", "slots_leave('a')", "relay_leave('a')",
			"read(0, 1, 1, 1)", "read_runs('{1}', '{1}', 1, 1)", "read_ids('{1}', 1, 1)", "sweep(0, 1, 1)",
			"read_due('-infinity', 0, now(), 1, 1, 1)",
			"settle('{1}', '{u}', '{failed}', '{1}', '{e}', '{1}', '{u}', '{1}', '{u}', '{1}', '{1}', '{e}')", "delete('{1}', '{u}')", "archive_purge('-infinity', 1, '-infinity')",
			"failed_list(0, 1)", "failed_count", "failed_requeue('{1}')", "failed_delete('{1}')", "stats", "stats_topics",
		},
	},
	{
		name: "consumer",
		privileges: []string{
			"SELECT ON outbox_processed", "INSERT ON outbox_processed", "DELETE ON outbox_processed",
			"UPDATE ON outbox_processed", // to lock what is purged
		},
		runs: []string{"processed_get('g', 'm')", "processed_mark('g', 'm', NULL)", "processed_purge('-infinity', 1, '-infinity')"},
	},
}

// All that a role runs works with its privileges, and without any one of them something does not.
func TestQueries_NeedThePrivilegesOfTheirRoleAndNoMore(t *testing.T) {
	t.Parallel()
	for _, server := range []pgtest.Server{pgtest.V15, pgtest.V18} {
		t.Run(server.Name, func(t *testing.T) {
			t.Parallel()
			schema := migrated(t, server)
			admin := connect(t, server)
			for _, role := range roles {
				user := "test_" + strings.ToLower(rand.Text()[:16])
				exec(t, admin, "CREATE ROLE "+user)
				t.Cleanup(func() {
					pgtest.Exec(t, server, "DROP OWNED BY "+user)
					pgtest.Exec(t, server, "DROP ROLE "+user)
				})
				exec(t, admin, "GRANT USAGE ON SCHEMA "+schema+" TO "+user)
				for _, privilege := range role.privileges {
					exec(t, admin, "GRANT "+render(t, schema, privilege)+" TO "+user)
				}
				db := connect(t, server)
				exec(t, db, "SET ROLE "+user)
				runs := make([]string, len(role.runs))
				for i, statement := range role.runs {
					name, _, _ := strings.Cut(statement, "(")
					exec(t, db, `PREPARE "`+name+`" AS `+query(t, schema, name)) // check is a word of the language
					runs[i] = `"` + name + `"` + strings.ReplaceAll(statement[len(name):], "SCHEMA", schema)
				}
				require.NoError(t, runAll(t, db, runs), role.name)
				for _, privilege := range role.privileges {
					exec(t, admin, "REVOKE "+render(t, schema, privilege)+" FROM "+user)
					var refused *pgconn.PgError
					if assert.ErrorAs(t, runAll(t, db, runs), &refused, "%s without %s", role.name, privilege) {
						assert.Equal(t, "42501", refused.Code, "%s without %s", role.name, privilege) // insufficient_privilege
					}
					exec(t, admin, "GRANT "+render(t, schema, privilege)+" TO "+user)
				}
			}
		})
	}
}

func runAll(t *testing.T, db *pgx.Conn, statements []string) error {
	t.Helper()
	var errs []error
	for _, statement := range statements {
		if _, err := db.Exec(t.Context(), "EXECUTE "+statement); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", statement, err))
		}
	}
	return errors.Join(errs...)
}
