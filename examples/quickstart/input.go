package main

import (
	"bufio"
	"bytes"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

//go:embed flights-2k.json
var flights []byte

// readRecords reads the records of a file, or the flights if path is empty. keyField names the field whose value is a
// record's key.
func readRecords(path, keyField string) ([]record, error) {
	name, data := "the flights", flights
	if path != "" {
		var err error
		if data, err = os.ReadFile(path); err != nil { //nolint:gosec // the user's own file
			return nil, fmt.Errorf("-input: %w", err)
		}
		name = path
	}
	records, err := parseRecords(data, keyField)
	if err != nil {
		return nil, fmt.Errorf("-input: %s: %w", name, err)
	}
	return records, nil
}

// parseRecords takes a JSON object per line, or a JSON array of objects. Its errors name the line.
func parseRecords(data []byte, keyField string) ([]record, error) {
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf")) // the mark that some editors put first
	parse := parseLines
	if bytes.HasPrefix(bytes.TrimLeft(data, " \t\r\n"), []byte("[")) {
		parse = parseArray
	}
	var records []record
	err := parse(data, func(line int, object []byte) error {
		r, err := newRecord(object, keyField)
		if err != nil {
			return fmt.Errorf("line %d: %w", line, err)
		}
		r.number, r.line = len(records)+1, line
		records = append(records, r)
		return nil
	})
	if err == nil && len(records) == 0 {
		err = errors.New("there are no records in it")
	}
	return records, err
}

func parseLines(data []byte, each func(line int, object []byte) error) error {
	lines := bufio.NewReader(bytes.NewReader(data)) // a Scanner would refuse long lines
	for number := 1; ; number++ {
		line, err := lines.ReadBytes('\n')
		if text := bytes.TrimSpace(line); len(text) > 0 {
			if err := each(number, text); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
	}
}

func parseArray(data []byte, each func(line int, object []byte) error) error {
	lineAt := func(offset int) int { return 1 + bytes.Count(data[:offset], []byte("\n")) }
	var objects []json.RawMessage
	if err := json.Unmarshal(data, &objects); err != nil {
		if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
			err = fmt.Errorf("line %d: %w", lineAt(int(syntax.Offset)), err)
		}
		return err
	}
	line, rest := 1, data
	for _, object := range objects {
		between := bytes.IndexFunc(rest, func(c rune) bool { return !strings.ContainsRune(" \t\r\n[,", c) })
		line += bytes.Count(rest[:between], []byte("\n"))
		if err := each(line, object); err != nil {
			return err
		}
		line += bytes.Count(object, []byte("\n"))
		rest = rest[between+len(object):]
	}
	return nil
}

func newRecord(object []byte, keyField string) (record, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(object, &fields); err != nil {
		if wrongType, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
			return record{}, fmt.Errorf("a record must be a JSON object, this is a JSON %s", wrongType.Value)
		}
		return record{}, fmt.Errorf("not a JSON object: %w", err)
	}
	if fields == nil {
		return record{}, errors.New("a record must be a JSON object, this is null")
	}
	key, err := keyOf(fields[keyField])
	if err != nil {
		return record{}, fmt.Errorf("field %q: %w", keyField, err)
	}
	return record{key: key, data: object}, nil
}

// keyOf returns the key that a field's value stands for; none for a field that is missing, null or "".
func keyOf(value json.RawMessage) (string, error) {
	if len(value) == 0 {
		return "", nil
	}
	switch value[0] {
	case '{', '[':
		return "", errors.New("a key must be a string, a number or a boolean")
	case '"':
		var text string
		err := json.Unmarshal(value, &text)
		return text, err
	}
	if string(value) == "null" {
		return "", nil
	}
	return string(value), nil
}
