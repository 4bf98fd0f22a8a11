package sqlstore

import (
	"encoding/json"
	"strconv"
	"unicode/utf8"

	"github.com/watermill-outbox/outbox"
)

// The statements that settle take the messages they are for as one JSON argument. It is written by hand: there is one
// for each message, and encoding/json would take longer than the statement.

// jsonObject is {"id": "uuid", ...}.
type jsonObject []byte

func (o jsonObject) with(m *outbox.Message) jsonObject {
	if o == nil {
		o = append(o, '{')
	} else {
		o = append(o, ',')
	}
	o = append(append(append(o, '"'), m.ID...), `":`...)
	return appendUUID(o, m.UUID)
}

func (o jsonObject) text() string {
	if o == nil {
		return ""
	}
	return string(append(o, '}'))
}

// jsonArray is [[id, "uuid", ...], ...].
type jsonArray []byte

// with adds the id and UUID of m, and what else the statement wants: int64s and strings.
func (a jsonArray) with(m *outbox.Message, columns ...any) jsonArray {
	if a == nil {
		a = append(a, '[')
	} else {
		a = append(a, ',')
	}
	a = append(append(append(a, '['), m.ID...), ',')
	a = appendUUID(a, m.UUID)
	for _, column := range columns {
		a = append(a, ',')
		switch v := column.(type) {
		case int64:
			a = strconv.AppendInt(a, v, 10)
		case string:
			a = appendJSON(a, v)
		}
	}
	return append(a, ']')
}

func (a jsonArray) text() string {
	if a == nil {
		return ""
	}
	return string(append(a, ']'))
}

// appendUUID appends null for a uuid that JSON cannot hold: one that was inserted by hand.
func appendUUID(b []byte, uuid string) []byte {
	if !utf8.ValidString(uuid) {
		return append(b, "null"...)
	}
	return appendJSON(b, uuid)
}

func appendJSON(b []byte, s string) []byte {
	if isPlain(s) {
		return append(append(append(b, '"'), s...), '"')
	}
	quoted, err := json.Marshal(s)
	if err != nil {
		panic(err) // a string always can be
	}
	return append(b, quoted...)
}

// jsonIDs is [id, ...].
func jsonIDs(ids []int64) string {
	b := []byte{'['}
	for i, id := range ids {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(b, id, 10)
	}
	return string(append(b, ']'))
}
