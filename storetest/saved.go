package storetest

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
)

func savedMessagePromises() []promise {
	return []promise{
		{name: "KeepsItsUUID", check: savedKeepsItsUUID},
		{name: "GetsAUUID_WhenItHasNone", check: savedGetsAUUID},
		{name: "MayHaveTheUUIDOfAnother", check: savedMayHaveTheUUIDOfAnother},
		{name: "KeepsItsPayload", check: savedKeepsItsPayload},
		{name: "KeepsItsHeaders", check: savedKeepsItsHeaders},
		{name: "KeepsItsTopicAndKey", check: savedKeepsItsTopicAndKey},
		{name: "HasIDAndStatusFromTheStore", check: savedHasIDAndStatusFromTheStore},
		{name: "HasIDsThatAscendInTheOrderOfTheCall", check: savedHasAscendingIDs},
		{name: "HasItsTimes", check: savedHasItsTimes},
		{name: "IsNotChangedThroughWhatCallersHold", check: savedIsNotChangedThroughWhatCallersHold},
	}
}

func savedKeepsItsUUID(e *env) {
	s := e.open()
	names := []string{
		"018f2b1e-7d4c-7000-8000-000000000000", "01ARZ3NDEKTSV4RRFFQ69G5FAV", "not a uuid at all", "grüße-🚀", "'; --",
		strings.Repeat("long", 50),
	}
	for _, uuid := range names {
		e.save(s, unkeyed(uuid))
	}
	e.drain(s, names...)
}

func savedGetsAUUID(e *env) {
	s := e.open()
	e.save(s, outbox.Message{Topic: "a"}, outbox.Message{Topic: "b"}, keyed("", "k"))
	seen := map[string]bool{}
	arrived := e.arrivals(s)
	require.Len(e, arrived, 3, "messages saved with an empty UUID are not the same message")
	for _, m := range arrived {
		require.NotEmpty(e, m.UUID, "Save must fill in an empty UUID: consumers deduplicate on it")
		require.False(e, seen[m.UUID], "Save filled in the UUID %s twice", m.UUID)
		seen[m.UUID] = true
	}
}

func savedMayHaveTheUUIDOfAnother(e *env) {
	s := e.open()
	a, b := unkeyed("same"), unkeyed("same")
	a.Topic, b.Topic = "a", "b"
	e.save(s, a, b)
	e.save(s, a)
	arrived := e.await(s, "same", "same", "same")
	e.done(s, arrived[0])
	e.handOver(s)
	left := e.await(e.open(), "same", "same")
	require.ElementsMatch(e, ids(arrived[1:]), ids(left), "marking one message must not touch others with its UUID")
}

func savedKeepsItsPayload(e *env) {
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	large := make([]byte, 1<<20)
	random := rand.NewChaCha8([32]byte{})
	_, _ = random.Read(large)
	payloads := map[string][]byte{
		"nil": nil, "empty": {}, "one zero": {0}, "all bytes": all, "not UTF-8": []byte("\xff\xfe\xfd"),
		"JSON": []byte(`{"a": 1.0, "a": 1}`), "1 MiB": large, "1 MiB of zeroes": make([]byte, 1<<20),
		"what looks like hex": []byte(`\x00ff`), "what looks like octal": []byte(`\001\\`),
	}
	s := e.open()
	names := []string{}
	for name, payload := range payloads {
		m := unkeyed(name)
		m.Payload = payload
		e.save(s, m)
		names = append(names, name)
	}
	for _, m := range e.drain(s, names...) {
		require.True(e, bytes.Equal(payloads[m.UUID], m.Payload), "the payload %q came back changed, with %d bytes of %d",
			m.UUID, len(m.Payload), len(payloads[m.UUID]))
	}
}

func savedKeepsItsHeaders(e *env) {
	many := map[string]string{}
	for i := range 500 {
		many[fmt.Sprintf("header %d", i)] = fmt.Sprint(i)
	}
	headers := map[string]map[string]string{
		"nil": nil, "empty": {}, "empty strings": {"": ""}, "NUL": {"a\x00b": "c\x00d", "e": "\x00"},
		"unicode":  {"grüße": "🚀 \u2028 \ufffd \u200b", "combining": "e\u0301 is not \u00e9"},
		"control":  {"a": "\r\n\t\b\x1f\x7f", "b": "\u0085"},
		"quoting":  {`"`: `\`, `'`: `'; DROP TABLE outbox_messages; --`, `\u0000`: `\x00`, "<&>": "</script>"},
		"of JSON":  {"json": `{"a":[1,2,{"b":null}]}`, "null": "null", "number": "1e400"},
		"of case":  {"Key": "1", "key": "2", "KEY": "3"},
		"of space": {"a ": " b ", "a": "b  "}, //nolint:gocritic // the space is what it is about
		"large":    {"large": strings.Repeat("x", 1<<17)}, "many": many,
	}
	s := e.open()
	names := []string{}
	for name, h := range headers {
		m := unkeyed(name)
		m.Headers = h
		e.save(s, m)
		names = append(names, name)
	}
	for _, m := range e.drain(s, names...) {
		require.Equal(e, outbox.StatusProcessing, m.Status, "headers %q cannot be read back: %s", m.UUID, m.LastError)
		require.True(e, maps.Equal(headers[m.UUID], m.Headers), "the headers %q came back as %q", headers[m.UUID], m.Headers)
	}
}

func savedKeepsItsTopicAndKey(e *env) {
	type address struct{ topic, key string }
	addresses := map[string]address{
		"plain": {"topic", "key"}, "longest": {strings.Repeat("t", outbox.MaxTopicLength), strings.Repeat("ß", 256)},
		"unicode": {"grüße.🚀", "ключ-🔑"}, "quoting": {`"; DROP TABLE outbox_messages; --`, `'\"` + "`"},
		"space": {" topic ", " key "}, "case": {"Topic", "KEY"}, "no key": {"topic", ""},
		"control": {"a\nb", "c\td\x7f"}, "percent": {"%s%d", "%_"},
	}
	s := e.open()
	names := []string{}
	for name, a := range addresses {
		m := keyed(name, a.key)
		m.Topic = a.topic
		e.save(s, m)
		names = append(names, name)
	}
	for _, m := range e.drain(s, names...) {
		require.Equal(e, addresses[m.UUID].topic, m.Topic, "the topic of message %q", m.UUID)
		require.Equal(e, addresses[m.UUID].key, m.Key, "the key of message %q", m.UUID)
	}
}

func savedHasIDAndStatusFromTheStore(e *env) {
	s := e.open()
	for _, status := range []outbox.MessageStatus{outbox.StatusFailed, outbox.StatusProcessed, "unheard of"} {
		m := unkeyed(string(status))
		m.ID, m.Status, m.ProcessedAt = "1", status, time.Now()
		e.save(s, m)
	}
	arrived := e.await(s, string(outbox.StatusFailed), string(outbox.StatusProcessed), "unheard of")
	seen := map[string]bool{}
	for _, m := range arrived {
		require.False(e, seen[m.ID], "id %s was given twice: the store assigns ids, Save ignores the caller's", m.ID)
		seen[m.ID] = true
		require.Zero(e, m.Retries, "retries of a message that was never tried")
		require.Empty(e, m.LastError, "error of a message that was never tried")
		require.True(e, m.ProcessedAt.IsZero(), "ProcessedAt of a message that is not processed must be zero")
	}
}

func savedHasAscendingIDs(e *env) {
	s := e.open()
	want := numbered("m", 12)
	msgs := make([]outbox.Message, len(want))
	for i, uuid := range want {
		msgs[i] = unkeyed(uuid)
	}
	e.save(s, msgs[:7]...)
	tx := e.begin(s)
	e.saveIn(s, tx, msgs[7:9]...)
	e.saveIn(s, tx, msgs[9:]...)
	e.commit(tx)
	arrived := e.await(s, want...)
	for i := range arrived[1:] {
		require.True(e, idLess(arrived[i].ID, arrived[i+1].ID), "%s was saved before %s, but their ids are %s and %s: ids "+
			"must "+
			"ascend in the order of the messages", want[i], want[i+1], arrived[i].ID, arrived[i+1].ID)
	}
}

func savedHasItsTimes(e *env) {
	const clockSkew = 10 * time.Minute // less than any mistake about time zones
	s := e.open()
	due := time.Now().Add(e.soon()).In(time.FixedZone("far east", 14*60*60))
	at := unkeyed("at once")
	later := unkeyed("later")
	later.AvailableAt = due
	e.save(s, at, later)
	arrived := e.await(s, "at once")
	arrived = append(arrived, e.await(s, "later")...)
	for _, m := range arrived {
		require.False(e, m.CreatedAt.IsZero(), "CreatedAt must be set")
		require.WithinDuration(e, time.Now(), m.CreatedAt, clockSkew, "CreatedAt is the time of Save, whatever the time zone")
	}
	require.True(e, arrived[0].AvailableAt.IsZero(), "AvailableAt of a message without a delay must be zero")
	require.WithinDuration(e, due, arrived[1].AvailableAt, time.Millisecond, "AvailableAt must come back as it was saved")
}

func savedIsNotChangedThroughWhatCallersHold(e *env) {
	s := e.open()
	payload, headers := []byte("payload"), map[string]string{"a": "b"}
	tx := e.begin(s)
	e.saveIn(s, tx, outbox.Message{UUID: "m", Topic: "topic", Payload: payload, Headers: headers})
	payload[0], headers["a"], headers["c"] = 'P', "changed", "new"
	e.commit(tx)
	payload[1] = 'A'

	arrived := e.await(s, "m")[0]
	require.Equal(e, "payload", string(arrived.Payload), "Save must not keep the caller's slice")
	require.Equal(e, map[string]string{"a": "b"}, arrived.Headers, "Save must not keep the caller's map")

	arrived.Payload[0], arrived.Headers["a"] = 'P', "changed"
	e.handOver(s)
	arrived = e.await(e.open(), "m")[0]
	require.Equal(e, "payload", string(arrived.Payload), "what FetchPending returned must not share memory with the store")
	require.Equal(e, map[string]string{"a": "b"}, arrived.Headers, "what FetchPending returned must not share memory "+
		"with "+
		"the store")
}
