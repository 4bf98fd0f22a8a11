package migrations_test

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"io"
	"os"
	osexec "os/exec"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/watermill-outbox/outbox/migrations"
)

const (
	many = 8
	// A race that is lost once in a few rounds is seen.
	goroutineRounds = 10
	processRounds   = 3
)

// atOnce calls do for many pools of connections and returns the first error.
func atOnce(t *testing.T, open func() *sql.DB, do func(ctx context.Context, db *sql.DB, i int) error) error {
	t.Helper()
	start := make(chan struct{})
	var group errgroup.Group
	for i := range many {
		db := open()
		group.Go(func() error {
			<-start
			return do(t.Context(), db, i)
		})
	}
	close(start)
	return group.Wait()
}

func assertMigratedOnce(t *testing.T, dsn string) {
	t.Helper()
	db := open(t, dsn)
	assert.ElementsMatch(t, tablesAndIndexes, namesOf(t, db))
	assert.EqualValues(t, latest, version(t, db))
	assert.Equal(t, latest+1, value[int](t, db, "SELECT count(*) FROM outbox_version"))
	assert.Equal(t, 1, value[int](t, db, "SELECT count(*) FROM outbox_slots"))
}

func TestUp_ByManyGoroutinesAtOnce_SucceedsForAll(t *testing.T) {
	for name, options := range dsnOptions {
		t.Run(name, func(t *testing.T) {
			for range goroutineRounds {
				dsn := newDSN(t, options)
				require.NoError(t, atOnce(t, func() *sql.DB { return open(t, dsn) }, func(ctx context.Context, db *sql.DB, _ int) error {
					return migrations.Up(ctx, db, driver)
				}))
				assertMigratedOnce(t, dsn)
			}
		})
	}
}

func TestDown_ByManyGoroutinesAtOnce_SucceedsForAll(t *testing.T) {
	for name, options := range dsnOptions {
		t.Run(name, func(t *testing.T) {
			for range goroutineRounds {
				dsn := newDSN(t, options)
				up(t, open(t, dsn))
				require.NoError(t, atOnce(t, func() *sql.DB { return open(t, dsn) }, func(ctx context.Context, db *sql.DB, _ int) error {
					return migrations.Down(ctx, db, driver)
				}))
				assert.Empty(t, schemaOf(t, open(t, dsn)))
			}
		})
	}
}

// Not that anybody should, and some of the calls may fail: but all tables are there or none is, and Up goes on from it.
func TestUpAndDown_AtOnce_LeaveAllOrNothing(t *testing.T) {
	for name, options := range dsnOptions {
		t.Run(name, func(t *testing.T) {
			for range goroutineRounds {
				dsn := newDSN(t, options)
				_ = atOnce(t, func() *sql.DB { return open(t, dsn) }, func(ctx context.Context, db *sql.DB, i int) error {
					if i%2 == 0 {
						return migrations.Down(ctx, db, driver)
					}
					return migrations.Up(ctx, db, driver)
				})
				db := open(t, dsn)
				if version(t, db) == latest {
					assertMigratedOnce(t, dsn)
				} else {
					assert.Subset(t, []string{"outbox_version"}, namesOf(t, db))
				}
				up(t, db)
				assertMigratedOnce(t, dsn)
			}
		})
	}
}

func TestUp_WithDifferentPrefixesAtOnce_SucceedsForAll(t *testing.T) {
	for name, options := range dsnOptions {
		t.Run(name, func(t *testing.T) {
			dsn := newDSN(t, options)
			require.NoError(t, atOnce(t, func() *sql.DB { return open(t, dsn) }, func(ctx context.Context, db *sql.DB, i int) error {
				return migrations.Up(ctx, db, driver, migrations.WithPrefix(fmt.Sprintf("p%d_", i)))
			}))
			assert.Len(t, schemaOf(t, open(t, dsn)), many*len(tablesAndIndexes))
		})
	}
}

func TestUp_ByManyProcessesAtOnce_SucceedsForAll_AndSaysNothing(t *testing.T) {
	for name, options := range dsnOptions {
		t.Run(name, func(t *testing.T) {
			for range processRounds {
				dsn := newDSN(t, options)
				children := make([]*child, many)
				for i := range children {
					children[i] = startChild(t, dsn)
				}
				for _, c := range children {
					require.NoError(t, c.tell.Close())
				}
				for _, c := range children {
					more, err := io.ReadAll(c.said)
					require.NoError(t, err)
					require.NoError(t, c.cmd.Wait(), c.complained.String())
					assert.Empty(t, more)
					assert.Empty(t, c.complained.String())
				}
				assertMigratedOnce(t, dsn)
			}
		})
	}
}

// A child is a process that calls Up as soon as tell is closed.
type child struct {
	cmd        *osexec.Cmd
	tell       io.Closer
	said       *bufio.Reader
	complained *bytes.Buffer
}

// startChild returns when the process is ready.
func startChild(t *testing.T, dsn string) *child {
	t.Helper()
	cmd := osexec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childDSN+"="+dsn)
	c := &child{cmd: cmd, complained: &bytes.Buffer{}}
	cmd.Stderr = c.complained
	tell, err := cmd.StdinPipe()
	require.NoError(t, err)
	said, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	c.tell, c.said = tell, bufio.NewReader(said)
	line, err := c.said.ReadString('\n')
	require.NoError(t, err, c.complained)
	require.Equal(t, "ready\n", line)
	return c
}
