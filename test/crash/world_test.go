package crash_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox/internal/pgtest"
)

// world is a database in which one process after another crashes. It is used by one goroutine at a time.
type world struct {
	job

	runs int
}

func newWorld(t *testing.T, kind string) *world {
	t.Helper()
	w := &world{job: job{Kind: kind, Folder: t.TempDir(), Name: "test"}}
	if kind == kindSQLite {
		w.Database = filepath.Join(w.Folder, "outbox.db")
	} else {
		w.Database = pgtest.Schema(t, pgtest.V15)
	}
	db, err := w.open(t.Context(), nil)
	require.NoError(t, err)
	require.NoError(t, db.migrate(t.Context()))
	require.NoError(t, db.Close())
	return w
}

// crash has a process crash at its job, if it comes to its target, and others do the rest.
func (w *world) crash(ctx context.Context, j job) (end ending, err error) {
	w.runs++
	j.Kind, j.Database, j.Folder = w.Kind, w.Database, w.Folder
	j.Run, j.Name = fmt.Sprintf("%d-", w.runs), fmt.Sprintf("%s-%d", filepath.Base(w.Database), w.runs)
	if j.Role == roleRelay {
		if j.Due, err = w.fill(ctx, j); err != nil {
			return end, fmt.Errorf("before: %w", err)
		}
	}
	end, err = j.start() // the only process that has the database open
	if err != nil {
		return end, err
	}
	end.outcome, err = w.recover(ctx, j, end)
	return end, err
}

// own returns the job for the test's own process.
func (w *world) own(j job) job {
	j.Name, j.Broken = w.Name, ""
	return j
}

// fill publishes what a relay is to find, and returns how much that is.
func (w *world) fill(ctx context.Context, j job) (due int, err error) {
	own := w.own(j)
	db, err := own.open(ctx, nil)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if err := own.produce(ctx, db, nil); err != nil {
		return 0, err
	}
	ids, err := db.query(ctx, "SELECT uuid FROM outbox_messages")
	return len(ids), err
}

// recover does what the process has left to do, and checks that all is as promised.
func (w *world) recover(ctx context.Context, j job, end ending) (o outcome, err error) {
	own := w.own(j)
	if j.Role == roleConsume {
		if err := own.do(ctx, nil); err != nil {
			return o, fmt.Errorf("after: %w", err)
		}
	}
	db, err := own.open(ctx, nil)
	if err != nil {
		return o, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if err := j.waitUntilGone(ctx, db); err != nil {
		return o, err
	}
	o = outcome{run: j.Run, keeps: j.Keep}
	if o.inFlight, err = j.inFlight(ctx, db); err != nil {
		return o, err
	}
	if o.lost, err = own.relayRest(ctx, db); err != nil {
		return o, fmt.Errorf("after: %w", err)
	}
	o.lost += end.lost
	if err := o.read(ctx, j, db); err != nil {
		return o, err
	}
	if !contains(o.committed, end.committed) {
		return o, fmt.Errorf("%v were committed, and of them there are only %v", end.committed, o.committed)
	}
	err = o.check()
	if j.Role == roleConsume {
		err = errors.Join(err, j.checkConsumed(ctx, db))
	}
	return o, err
}

// inFlight returns what the broker has and the outbox, too.
func (j job) inFlight(ctx context.Context, db *database) ([]string, error) {
	pending, err := db.query(ctx, "SELECT uuid FROM outbox_messages")
	if err != nil {
		return nil, err
	}
	published, err := j.published()
	return slices.DeleteFunc(pending, func(id string) bool { return !slices.Contains(published, id) }), err
}

// read reads the rest of the outcome.
func (o *outcome) read(ctx context.Context, j job, db *database) (err error) {
	table := map[string]string{roleProduce: "orders", roleRelay: "orders", roleConsume: "effects"}[j.Role]
	var errs [5]error
	o.committed, errs[0] = j.those(ctx, db, "SELECT uuid FROM "+table)
	o.left, errs[1] = db.query(ctx, "SELECT uuid FROM outbox_messages")
	o.setAside, errs[2] = j.those(ctx, db, "SELECT uuid FROM outbox_archive WHERE status = 'failed'")
	o.kept, errs[3] = j.those(ctx, db, "SELECT uuid FROM outbox_archive WHERE status = 'processed'")
	o.published, errs[4] = j.published()
	return errors.Join(errs[:]...)
}

func (j job) checkConsumed(ctx context.Context, db *database) error {
	of := j
	of.Run = inputPrefix + j.Run
	effects, err := of.those(ctx, db, "SELECT input || ' ' || uuid FROM effects")
	if err != nil {
		return err
	}
	recorded, err := of.those(ctx, db, "SELECT message_id FROM outbox_processed")
	if err != nil {
		return err
	}
	return checkEffects(j.Run, effects, recorded)
}

// those returns what is of this run.
func (j job) those(ctx context.Context, db *database, query string) ([]string, error) {
	all, err := db.query(ctx, query)
	return slices.DeleteFunc(all, func(one string) bool { return !strings.HasPrefix(one, j.Run) }), err
}
