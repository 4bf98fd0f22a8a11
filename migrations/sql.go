package migrations

import (
	"fmt"
	"io/fs"
	"slices"
	"strings"
)

// sql puts the sections of all migrations between two versions together.
func (s schema) sql(from, to int64) (string, error) {
	all, err := s.migrations()
	if err != nil {
		return "", fmt.Errorf("outbox: migrations of %s: %w", s.dialect.database, err)
	}
	latest, err := s.latest()
	if err != nil {
		return "", fmt.Errorf("outbox: migrations of %s: %w", s.dialect.database, err)
	}
	for _, version := range []int64{from, to} {
		if version < 0 || version > latest {
			return "", fmt.Errorf("outbox: there is no version %d of the schema for %s: this release has 0 to %d",
				version, s.dialect.database, latest)
		}
	}
	low, high, direction := from, to, "Up"
	if from > to {
		low, high, direction = to, from, "Down"
		slices.Reverse(all)
	}
	var steps []string
	for _, m := range all {
		if m.version <= low || m.version > high {
			continue
		}
		text, err := fs.ReadFile(s.files, m.file)
		if err != nil {
			return "", fmt.Errorf("outbox: migrations of %s: %w", s.dialect.database, err)
		}
		steps = append(steps, section(string(text), direction))
	}
	return strings.Join(steps, "\n"), nil
}

const annotation = "-- +goose "

// section returns what comes under the annotation Up or Down, without any annotations.
func section(text, direction string) string {
	var lines []string
	current := ""
	for line := range strings.Lines(text) {
		name, isAnnotation := strings.CutPrefix(line, annotation)
		switch name = strings.TrimSpace(name); {
		case isAnnotation && (name == "Up" || name == "Down"):
			current = name
		case !isAnnotation && current == direction:
			lines = append(lines, line)
		}
	}
	return strings.TrimSpace(strings.Join(lines, "")) + "\n"
}
