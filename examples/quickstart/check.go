package main

import (
	"context"
	"database/sql"
	"fmt"
	"strings"

	"github.com/watermill-outbox/outbox"
)

// report is what the tables say when all is over.
type report struct {
	saved      int // records whose transaction was committed
	rolledBack int // records whose transaction was rolled back, as the application counted them
	published  int // Publish calls that the broker has acknowledged
	handled    int // records that were handled
	absorbed   int // redelivered messages that the Deduplicator has kept from the handler
	left       int // messages that are still in the outbox, or were set aside
	twice      int // records that were handled more than once
	lost       int // records that were saved and not handled
	phantom    int // records that were handled and not saved
	outOfOrder int // records that were handled after a later one of the same key
}

// counts are the queries for the figures of a report. Each returns one number.
var counts = []struct {
	query  string
	figure func(*report) *int
}{
	{`SELECT count(*) FROM records`, func(r *report) *int { return &r.saved }},
	{
		`SELECT count(*) FROM journal WHERE event = '` + eventPublished + `'`,
		func(r *report) *int { return &r.published },
	},
	{`SELECT count(DISTINCT record) FROM handled`, func(r *report) *int { return &r.handled }},
	{
		`SELECT count(*) FROM journal WHERE event = '` + eventDeduplicated + `'`,
		func(r *report) *int { return &r.absorbed },
	},
	{
		`SELECT count(*) FROM (SELECT record FROM handled GROUP BY record HAVING count(*) > 1)`,
		func(r *report) *int { return &r.twice },
	},
	{
		`SELECT count(*) FROM records WHERE number NOT IN (SELECT record FROM handled)`,
		func(r *report) *int { return &r.lost },
	},
	{
		`SELECT count(DISTINCT record) FROM handled WHERE record NOT IN (SELECT number FROM records)`,
		func(r *report) *int { return &r.phantom },
	},
	// Records were saved in the order of their numbers. Of each, the first time that it was handled is compared with
	// those of its key that were handled before it.
	{`WITH first AS (
		SELECT h.record, r.key, min(h.id) AS id FROM handled h JOIN records r ON r.number = h.record
		WHERE r.key <> '' GROUP BY h.record
	), compared AS (
		SELECT record, max(record) OVER (PARTITION BY key ORDER BY id) AS latest FROM first
	)
	SELECT count(*) FROM compared WHERE record < latest`, func(r *report) *int { return &r.outOfOrder }},
}

// check makes the report from the tables. It does not know how many records were rolled back: no table does.
func check(ctx context.Context, db *sql.DB, store outbox.StatsReporter) (report, error) {
	var r report
	for _, c := range counts {
		if err := db.QueryRowContext(ctx, c.query).Scan(c.figure(&r)); err != nil {
			return r, fmt.Errorf("%s: %w", c.query, err)
		}
	}
	stats, err := store.Stats(ctx)
	r.left = int(stats.Pending + stats.Failed)
	return r, err
}

// String returns the report as a table.
func (r report) String() string {
	var b strings.Builder
	for _, line := range []struct {
		name   string
		figure int
	}{
		{"saved", r.saved},
		{"rolled back", r.rolledBack},
		{"published", r.published},
		{"handled", r.handled},
		{"redeliveries absorbed", r.absorbed},
		{"left in the outbox", r.left},
		{"handled twice", r.twice},
		{"lost", r.lost},
		{"phantom", r.phantom},
		{"out of order per key", r.outOfOrder},
	} {
		fmt.Fprintf(&b, "%-22s %7d\n", line.name, line.figure)
	}
	return b.String()
}

// verdict returns an error if a promise was broken.
func (r report) verdict() error {
	if r.left+r.twice+r.lost+r.phantom+r.outOfOrder > 0 {
		return fmt.Errorf("a promise was broken: %d left in the outbox, %d handled twice, %d lost, %d phantom, "+
			"%d out of order; please report it", r.left, r.twice, r.lost, r.phantom, r.outOfOrder)
	}
	return nil
}
