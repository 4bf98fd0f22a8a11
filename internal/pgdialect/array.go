package pgdialect

import (
	"encoding/hex"
	"strconv"
	"strings"
)

// TextArrays makes array literals of columns, for database/sql, whose drivers take arrays in different ways and text in
// one. https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO
func TextArrays(columns ...any) []any {
	args := make([]any, len(columns))
	for i, column := range columns {
		switch values := column.(type) {
		case []int64:
			args[i] = integers(values)
		case []string:
			args[i] = texts(values)
		case [][]byte:
			args[i] = bytea(values)
		}
	}
	return args
}

// Arrays passes columns on, for a driver that takes slices.
func Arrays(columns ...any) []any { return columns }

func integers(values []int64) string {
	b := append(make([]byte, 0, 12*len(values)+2), '{')
	for i, v := range values {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(b, v, 10)
	}
	return string(append(b, '}'))
}

var quoted = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

func texts(values []string) string {
	var b strings.Builder
	b.WriteByte('{')
	for i, v := range values {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteByte('"')
		_, _ = quoted.WriteString(&b, v) // a Builder does not fail
		b.WriteByte('"')
	}
	b.WriteByte('}')
	return b.String()
}

func bytea(values [][]byte) string {
	size := 2
	for _, v := range values {
		size += 2*len(v) + 7
	}
	b := append(make([]byte, 0, size), '{')
	for i, v := range values {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, `"\\x`...)
		b = hex.AppendEncode(b, v)
		b = append(b, '"')
	}
	return string(append(b, '}'))
}
