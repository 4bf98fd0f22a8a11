package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/watermill-outbox/outbox/store/sqlite"
)

const (
	rollbackEvery = 20
	// saveTime is how long the application takes over its records, if they are many, and savePause the longest time
	// between two of them: whatever happens is to happen meanwhile.
	saveTime  = 8 * time.Second
	savePause = 4 * time.Millisecond
)

// errRollback is what makes save roll its transaction back, on purpose.
var errRollback = errors.New("rolled back on purpose")

// record is what the application saves.
type record struct {
	number int    // from 1, in the order of the input
	line   int    // of the input
	key    string // empty: no order
	data   []byte // a JSON object
}

// isRolledBack tells whether its transaction is to fail.
func (r record) isRolledBack() bool { return r.number%rollbackEvery == 0 }

// expected is how many of the records are to be handled.
func expected(records []record) int { return len(records) - len(records)/rollbackEvery }

// saveAll is the application. It saves the records one after another, and returns how many were rolled back.
func saveAll(ctx context.Context, store *sqlite.Store, records []record) (rolledBack int, err error) {
	ticker := time.NewTicker(min(savePause, max(saveTime/time.Duration(len(records)), 1)))
	defer ticker.Stop()
	for _, r := range records {
		switch err := save(ctx, store, r); {
		case errors.Is(err, errRollback):
			rolledBack++
		case err != nil:
			return rolledBack, fmt.Errorf("save the record of line %d: %w", r.line, err)
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return rolledBack, ctx.Err()
		}
	}
	return rolledBack, nil
}
