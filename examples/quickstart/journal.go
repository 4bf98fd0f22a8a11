package main

import (
	"context"
	"database/sql"
	"fmt"
	"os"

	"github.com/watermill-outbox/outbox"
)

// What the journal notes.
const (
	eventPublished    = "published"
	eventDeduplicated = "deduplicated"
	eventOutageBegun  = "outage begun"
	eventOutageEnded  = "outage ended"
)

// journal is an outbox.Observer that notes events in the database, where they survive the kill of the service. An
// Observer should be quick, so a program of yours counts in memory instead, for its metrics.
type journal struct{ db *sql.DB }

// Observe implements outbox.Observer.
func (j *journal) Observe(ctx context.Context, event outbox.Event) {
	switch e := event.(type) {
	case outbox.PublishedEvent:
		j.note(ctx, eventPublished, e.Message.UUID)
	case outbox.DeduplicatedEvent:
		j.note(ctx, eventDeduplicated, e.MessageID)
	case outbox.OutageBegunEvent:
		j.note(ctx, eventOutageBegun, e.Err.Error())
	case outbox.OutageEndedEvent:
		j.note(ctx, eventOutageEnded, fmt.Sprintf("%.1f s", e.Duration.Seconds()))
	}
}

func (j *journal) note(ctx context.Context, event, detail string) {
	const insert = `INSERT INTO journal (event, detail) VALUES (?, ?)`
	if _, err := j.db.ExecContext(context.WithoutCancel(ctx), insert, event, detail); err != nil {
		fmt.Fprintln(os.Stderr, "quickstart: service: an event is missing in the journal:", err)
	}
}

// state is how far the service has come.
type state struct {
	handled int
	outage  string // the latest event of an outage, empty before the first
	detail  string
}

// readState reads it from the tables, which tell of what was committed.
func readState(ctx context.Context, db *sql.DB) (state, error) {
	var s state
	err := db.QueryRowContext(ctx, `SELECT coalesce(max(id), 0) FROM handled`).Scan(&s.handled)
	if err != nil {
		return s, err
	}
	const latest = `SELECT event, detail FROM journal WHERE event LIKE 'outage%' ORDER BY id DESC LIMIT 1`
	err = db.QueryRowContext(ctx, latest).Scan(&s.outage, &s.detail)
	if err == sql.ErrNoRows {
		err = nil
	}
	return s, err
}
