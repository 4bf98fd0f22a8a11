package main

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseRecords(t *testing.T) {
	for name, test := range map[string]struct {
		input string
		want  []record
	}{
		"lines": {
			"{\"origin\":\"LAX\"}\r\n\n  {\"origin\":7}\n{\"origin\":true}\n{\"origin\":null}\n{\"origin\":\"\"}\n{}",
			[]record{
				{1, 1, "LAX", []byte(`{"origin":"LAX"}`)},
				{2, 3, "7", []byte(`{"origin":7}`)},
				{3, 4, "true", []byte(`{"origin":true}`)},
				{4, 5, "", []byte(`{"origin":null}`)},
				{5, 6, "", []byte(`{"origin":""}`)},
				{6, 7, "", []byte(`{}`)},
			},
		},
		"an array": {
			" [\n{\"origin\":\"LAX\"},\n\n{\n\"origin\":\"\\u00c5\"},{}\n]\n",
			[]record{
				{1, 2, "LAX", []byte(`{"origin":"LAX"}`)},
				{2, 4, "Å", []byte("{\n\"origin\":\"\\u00c5\"}")},
				{3, 5, "", []byte(`{}`)},
			},
		},
		"a byte order mark": {
			"\xef\xbb\xbf{}\n", []record{{1, 1, "", []byte(`{}`)}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parseRecords([]byte(test.input), "origin")
			require.NoError(t, err)
			require.Equal(t, test.want, got)
		})
	}
}

func TestParseRecords_NamesTheLine(t *testing.T) {
	for name, test := range map[string]struct{ input, want string }{
		"nothing":              {"", "there are no records in it"},
		"blank lines":          {"\n \n", "there are no records in it"},
		"an empty array":       {"[]", "there are no records in it"},
		"not JSON":             {"{}\n{]\n", "line 2: not a JSON object: invalid character"},
		"not whole":            {"{}\n{\"a\": 1", "line 2: not a JSON object: unexpected end of JSON input"},
		"two on a line":        {"{} {}", "line 1: not a JSON object: invalid character '{' after top-level value"},
		"a number":             {"{}\n\n7", "line 3: a record must be a JSON object, this is a JSON number"},
		"null":                 {"null", "line 1: a record must be a JSON object, this is null"},
		"an object as key":     {"{}\n{\"origin\": {}}", "line 2: field \"origin\": a key must be a string"},
		"not JSON in array":    {"[\n{},\n{]\n]", "line 3: invalid character"},
		"a number in array":    {"[\n{},\n\n7\n]", "line 4: a record must be a JSON object, this is a JSON number"},
		"an array without end": {"[\n{},\n{}\n", "line 4: unexpected end of JSON input"},
		"two arrays":           {"[\n{}]\n[{}]", "line 3: invalid character '[' after top-level value"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parseRecords([]byte(test.input), "origin")
			require.ErrorContains(t, err, test.want)
		})
	}
}

func TestReadRecords_HasTwoThousandFlights(t *testing.T) {
	records, err := readRecords("", "origin")
	require.NoError(t, err)
	require.Len(t, records, 2000)
	for _, r := range records {
		require.Len(t, r.key, 3)
	}
}
