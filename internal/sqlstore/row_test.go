package sqlstore

import (
	"encoding/json"
	"errors"
	"maps"
	"testing"
	"unicode/utf8"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// awkward is what JSON writes in other ways than it is, what it must not hold as it is, and what is no UTF-8.
var awkward = []string{
	"", "plain", `"`, `\`, `\"`, `","`, `":"`, `\u0041`, "\x00", "a\x00b", "\x1f", "\x7f", "\n", "\t", "\b", "/", "<&>",
	"\u2028\u2029", "\ufeff", "\ufffd", "é", "e\u0301", "😀", "\U0010ffff", "\xff", "\xed\xa0\x80", "\xf4\x90\x80\x80",
	" ", "{}", "null",
}

// What is valid UTF-8 comes back as it was, by encoding/json too; what is not is refused, and not replaced.
func FuzzEncodeHeaders(f *testing.F) {
	for i, s := range awkward {
		f.Add(s, awkward[len(awkward)-1-i], "key", s)
		f.Add("key", s, "other", "value")
	}
	f.Fuzz(func(t *testing.T, k, v, otherK, otherV string) {
		headers := map[string]string{k: v, otherK: otherV}
		text, err := encodeHeaders(headers)
		if !isUTF8(headers) {
			if err == nil {
				t.Fatalf("%q became %q", headers, text)
			}
			return
		}
		if err != nil {
			t.Fatalf("%q: %v", headers, err)
		}
		var byJSON map[string]string
		if err := json.Unmarshal([]byte(text), &byJSON); err != nil || !maps.Equal(byJSON, headers) {
			t.Fatalf("%q became %s, which is %q: %v", headers, text, byJSON, err)
		}
		back, err := decodeHeaders(text)
		if err != nil || !maps.Equal(back, headers) {
			t.Fatalf("%q became %s, and came back as %q: %v", headers, text, back, err)
		}
	})
}

// Whatever somebody has written into the column: it is read as encoding/json reads it, or refused. What is no UTF-8,
// encoding/json would replace.
func FuzzDecodeHeaders(f *testing.F) {
	for _, s := range awkward {
		f.Add(s)
		f.Add(`{"` + s + `":"` + s + `"}`)
		f.Add(`{"a":"b", "` + s + `": "c"}`)
	}
	for _, text := range []string{
		`{}`, ` {}`, `{} `, `{ }`, "{\n}", `{"a":"b"}`, `{"a": "b", "c": "d"}`, `{"a" : "b"}`, "{\"a\":\t\"b\"}", `{"a":"b","a":"c"}`,
		`{"a":"b"`, `{"a":"b",}`, `{,"a":"b"}`, `{"a":"b"}}`, `{"a":"b"}{}`, `{"a"}`, `{"a":}`, `{a:"b"}`, `{'a':'b'}`, `{"a":"b" "c":"d"}`,
		`{"a":"b",,"c":"d"}`, `{"a":"b",  "c":"d"}`, `{"a":1}`, `{"a":null}`, `{"a":{}}`, `{"a":["b"]}`, `[]`, `["a"]`, `null`, `true`,
		`"a"`, `{"\u0061":"\u0062"}`, `{"a":"\u2028"}`, `{"a":"\ud83d\ude00"}`, `{"a":"\ud83d"}`, `{"a":"\u00"}`, `{"a":"\x00"}`,
		`{"a":"\"}`, `{"a":"\\"}`, `{"a":"\/"}`, `{`, `{"`, `{"a`, `{"a"`, `{"a":`, `{"a":"`, `{"a":"b`, `{"a":"b",`, `{"a":"b", `,
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var object map[string]*string
		wantErr := json.Unmarshal([]byte(text), &object)
		want := map[string]string{}
		for k, v := range object {
			if v == nil {
				wantErr = errors.New("a value is null")
				continue
			}
			want[k] = *v
		}
		if object == nil && wantErr == nil {
			wantErr = errors.New("it is null")
		}
		headers, err := decodeHeaders(text)
		switch {
		case !utf8.ValidString(text) || wantErr != nil:
			if err == nil {
				t.Fatalf("%q was read as %q, instead of: %v", text, headers, wantErr)
			}
		case err != nil || !maps.Equal(headers, want):
			t.Fatalf("%q was read as %q: %v, instead of %q", text, headers, err, want)
		default:
			again, err := encodeHeaders(headers)
			if err != nil {
				t.Fatalf("%q, which was read of %q, cannot be written: %v", headers, text, err)
			}
			if back, err := decodeHeaders(again); err != nil || !maps.Equal(back, headers) {
				t.Fatalf("%q became %s, and came back as %q: %v", headers, again, back, err)
			}
		}
	})
}

func isUTF8(headers map[string]string) bool {
	for k, v := range headers {
		if !utf8.ValidString(k) || !utf8.ValidString(v) {
			return false
		}
	}
	return true
}
