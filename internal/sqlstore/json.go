package sqlstore

import (
	"encoding/json"
	"strconv"
	"unicode/utf8"
)

// JSONBatch is a Dialect's Batch for databases without arrays: one argument, [id, ...] for a single column,
// {"id": "text", ...} for an integer and a text one, and [[id, ...], ...] for more. It is written by hand: there is a row
// for each message that is marked, and encoding/json would take longer than the statement.
func JSONBatch(columns ...any) []any {
	ids := columns[0].([]int64) //nolint:forcetypeassert // the engine's statements all have an id first
	begin, end := byte('['), byte(']')
	if len(columns) == 2 {
		begin, end = '{', '}'
	}
	b := append(make([]byte, 0, 64*len(ids)), begin)
	for i, id := range ids {
		if i > 0 {
			b = append(b, ',')
		}
		switch len(columns) {
		case 1:
			b = strconv.AppendInt(b, id, 10)
		case 2:
			b = append(strconv.AppendInt(append(b, '"'), id, 10), `":`...)
			b = appendJSON(b, columns[1].([]string)[i]) //nolint:forcetypeassert // see above
		default:
			b = append(b, '[')
			for k, column := range columns {
				if k > 0 {
					b = append(b, ',')
				}
				switch values := column.(type) {
				case []int64:
					b = strconv.AppendInt(b, values[i], 10)
				case []string:
					b = appendJSON(b, values[i])
				}
			}
			b = append(b, ']')
		}
	}
	return []any{string(append(b, end))}
}

// appendJSON appends null for what JSON cannot hold: the uuid of a row that was inserted by hand.
func appendJSON(b []byte, s string) []byte {
	if !utf8.ValidString(s) {
		return append(b, "null"...)
	}
	if isPlain(s) {
		return append(append(append(b, '"'), s...), '"')
	}
	quoted, err := json.Marshal(s)
	if err != nil {
		panic(err) // a string always can be
	}
	return append(b, quoted...)
}
