package main

import (
	"context"
	"database/sql"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/watermill-outbox/outbox/store/sqlite"
)

// options are what the command line says.
type options struct {
	input, keyField, database string
	verbose                   bool
}

//go:embed schema.sql
var schema string

// demo runs the experiment and writes the report to out. It returns an error if a promise was not kept.
func demo(ctx context.Context, o options, out io.Writer) error {
	records, err := readRecords(o.input, o.keyField)
	if err != nil {
		return err
	}
	path, cleanUp, err := databasePath(o.database)
	if err != nil {
		return err
	}
	defer cleanUp()
	db, store, err := openStore(path)
	if err != nil {
		return err
	}
	defer db.Close() //nolint:errcheck // everything is committed
	if err := store.Migrate(ctx); err != nil {
		return err
	}
	if _, err := db.ExecContext(ctx, schema); err != nil {
		return fmt.Errorf("create the tables: %w", err)
	}
	e := &experiment{
		db: db, store: store, records: records, progress: newProgress(os.Stderr, expected(records)),
		service: serviceSettings{Database: path, Verbose: o.verbose},
	}
	rolledBack, err := e.run(ctx)
	if err != nil {
		return err
	}
	r, err := check(ctx, db, store)
	if err != nil {
		return fmt.Errorf("check: %w", err)
	}
	r.rolledBack = rolledBack
	text := r.String()
	if o.database != "" {
		text += fmt.Sprintf("\nThe database is in %s: tables records, handled, journal and outbox_*.\n", path)
	}
	if _, err := io.WriteString(out, text); err != nil {
		return err
	}
	return r.verdict()
}

// databasePath returns where the database goes, and what removes it if it is a temporary one.
func databasePath(name string) (path string, cleanUp func(), err error) {
	if name == "" {
		dir, err := os.MkdirTemp("", "outbox-quickstart-")
		if err != nil {
			return "", nil, err
		}
		return filepath.Join(dir, "quickstart.db"), func() { _ = os.RemoveAll(dir) }, nil
	}
	switch _, err := os.Stat(name); {
	case err == nil:
		return "", nil, fmt.Errorf("-db: %s is there already; remove it, or name another file", name)
	case !errors.Is(err, os.ErrNotExist):
		return "", nil, fmt.Errorf("-db: %w", err)
	}
	return name, func() {}, nil
}

// openStore opens the database; both processes do. Synchronous NORMAL saves the experiment from waiting for the disk
// thousands of times. It loses nothing when processes are killed, but may when the power fails: leave it out elsewhere.
func openStore(path string, opts ...sqlite.Option) (*sql.DB, *sqlite.Store, error) {
	db, err := sqlite.Open(path + "?_synchronous=NORMAL")
	if err != nil {
		return nil, nil, err
	}
	store, err := sqlite.New(db, opts...)
	if err != nil {
		return nil, nil, errors.Join(err, db.Close())
	}
	return db, store, nil
}

// experiment is one run of the application and of the service, with what befalls them. It ends with run.
type experiment struct {
	db       *sql.DB
	store    *sqlite.Store
	records  []record
	service  serviceSettings
	progress *progress // of the goroutine that watches the service
}

// run saves all records while the service handles them, and returns how many were rolled back.
func (e *experiment) run(ctx context.Context) (rolledBack int, err error) {
	allSaved := make(chan struct{})
	group, groupCtx := errgroup.WithContext(ctx)
	group.Go(func() error {
		var err error
		if rolledBack, err = saveAll(groupCtx, e.store, e.records); err != nil {
			return err
		}
		close(allSaved)
		return nil
	})
	group.Go(func() error { return e.handleAll(groupCtx, allSaved) })
	err = group.Wait()
	if ctx.Err() != nil {
		return rolledBack, errors.New("interrupted")
	}
	return rolledBack, err
}

// handleAll runs the service until all is saved and handled. When half is, it kills the service and starts another.
func (e *experiment) handleAll(ctx context.Context, allSaved <-chan struct{}) error {
	defer e.progress.end()
	total := expected(e.records)
	e.progress.sayf("saving %d records, each in a transaction of its own; every %dth is rolled back", len(e.records),
		rollbackEvery)

	first := e.service
	first.Outage, first.OutageAfter = outageTime, total/4
	service, err := startService(ctx, first)
	if err != nil {
		return err
	}
	defer service.kill()
	err = e.watch(ctx, service, func(s state) (bool, error) { return 2*s.handled >= total, nil })
	if err != nil {
		return err
	}
	service.kill()
	e.progress.sayf("half is handled: the service was killed (SIGKILL), another one starts")

	second, err := startService(ctx, e.service)
	if err != nil {
		return err
	}
	defer second.kill()
	err = e.watch(ctx, second, func(state) (bool, error) { return e.isOutboxEmpty(ctx, allSaved) })
	if err != nil {
		return err
	}
	e.progress.sayf("all is saved, and the outbox is empty")
	return second.stop()
}

// isOutboxEmpty reports whether all is done: a message leaves the outbox only when it was handled, since the broker
// acknowledges it only then.
func (e *experiment) isOutboxEmpty(ctx context.Context, allSaved <-chan struct{}) (bool, error) {
	select {
	case <-allSaved:
		stats, err := e.store.Stats(ctx)
		return stats.Pending == 0, err
	default:
		return false, nil
	}
}

const (
	outageTime = 2 * time.Second
	// leaseTTL is how long after the kill nobody relays: the lease of the dead service keeps the other one waiting.
	// The default is 10 s, to bear with busy machines on which a lease may be renewed late; here it would take most of
	// the experiment. A service that stops gracefully hands over at once.
	leaseTTL = 2 * time.Second

	watchInterval = 50 * time.Millisecond
	// patience is after what time without anything handled something must be wrong.
	patience = 30 * time.Second
)

// watch shows the progress until isDone, or until the service ends by itself.
func (e *experiment) watch(ctx context.Context, service *process, isDone func(state) (bool, error)) error {
	ticker := time.NewTicker(watchInterval)
	defer ticker.Stop()
	var last state
	changed := time.Now()
	for {
		s, err := readState(ctx, e.db)
		if err != nil {
			return fmt.Errorf("read the progress: %w", err)
		}
		e.progress.show(s)
		if done, err := isDone(s); done || err != nil {
			return err
		}
		if s != last {
			last, changed = s, time.Now()
		}
		if time.Since(changed) > patience {
			return fmt.Errorf("nothing was handled for %v; see what -v shows", patience)
		}
		select {
		case <-ticker.C:
		case <-service.ended:
			return service.unexpectedEnd()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
