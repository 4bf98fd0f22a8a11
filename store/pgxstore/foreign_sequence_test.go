package pgxstore_test

import (
	"fmt"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/internal/pgtest"
)

// Who may still be late is known by the sequence of one name. Tables that were copied, to be partitioned or made smaller, have
// another: CheckSchema refuses them, and what its error says to do helps.
func TestStore_RefusesATableWhoseIDsAreOfAnotherSequence(t *testing.T) {
	t.Parallel()
	for name, statements := range map[string]string{
		"the old table is kept": `
			ALTER TABLE outbox_messages RENAME TO old_messages;
			CREATE TABLE outbox_messages (LIKE old_messages INCLUDING ALL)`,
		"the old table is dropped": `
			CREATE TABLE new_messages (LIKE outbox_messages INCLUDING ALL);
			DROP TABLE outbox_messages;
			ALTER TABLE new_messages RENAME TO outbox_messages`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			schema := pgtest.Schema(t, pgtest.V15)
			p := newProcess(t, schema, pgtest.V15.URL()+"?search_path="+schema)
			require.NoError(t, p.CheckSchema(t.Context()))
			_, err := p.pool.Exec(t.Context(), statements)
			require.NoError(t, err)

			err = p.CheckSchema(t.Context())
			require.Error(t, err)
			require.NotErrorIs(t, err, outbox.ErrNotMigrated, "no migration would help")
			_, claimErr := p.Claim(t.Context(), 1, 1)
			require.ErrorContains(t, claimErr, err.Error())
			t.Log(err)
			is := regexp.MustCompile(`its sequence is (\S+), not`).FindStringSubmatch(err.Error())
			help := regexp.MustCompile(`ALTER SEQUENCE \.\.\. (RENAME TO \S+)`).FindStringSubmatch(err.Error())
			require.NotNil(t, is)
			require.NotNil(t, help)
			_, err = p.pool.Exec(t.Context(), fmt.Sprintf("DROP TABLE IF EXISTS old_messages; ALTER SEQUENCE %s %s", is[1], help[1]))
			require.NoError(t, err)
			require.NoError(t, p.CheckSchema(t.Context()))
		})
	}
}
