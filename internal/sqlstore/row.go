package sqlstore

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/internal/claim"
)

// appendRow appends the arguments of the insert statement for one row.
func (e *Engine) appendRow(args []any, m *outbox.Message) ([]any, error) {
	headers, err := encodeHeaders(m.Headers)
	if err != nil {
		return nil, fmt.Errorf("encode the headers: %w", err)
	}
	var due any
	if !m.AvailableAt.IsZero() {
		due = e.dialect.Time.ToColumn(m.AvailableAt)
	}
	return append(args, uuidOf(m), m.Topic, m.Key, payloadOf(m), headers, due), nil
}

func uuidOf(m *outbox.Message) string {
	if m.UUID == "" {
		return watermill.NewUUID()
	}
	return m.UUID
}

// payloadOf is never nil: NULL would be no payload, which a message cannot have.
func payloadOf(m *outbox.Message) []byte {
	if m.Payload == nil {
		return []byte{}
	}
	return m.Payload
}

// row is what the read statements give, in the order of their columns.
type row struct {
	id      int64
	slot    int
	msg     outbox.Message
	headers string
	retries any
	due     any
	created any
	size    int // about what it weighs in memory
}

func (r *row) scan(s Scanner) error {
	return s.Scan(&r.id, &r.slot, &r.msg.UUID, &r.msg.Topic, &r.msg.Key, &r.msg.Payload, &r.headers, &r.retries,
		&r.due, &r.msg.LastError, &r.created)
}

// complete completes what scan has read. A row that somebody has damaged becomes a message with StatusFailed, to be set
// aside with an error that tells what is wrong: it must not hold up the others.
func (e *Engine) complete(r *row, status outbox.MessageStatus) {
	r.msg.ID = strconv.FormatInt(r.id, 10)
	r.msg.Status = status
	if err := e.decode(r); err != nil {
		r.msg.Status = outbox.StatusFailed
		r.msg.LastError = err.Error()
	}
}

func (e *Engine) decode(r *row) error {
	retries, ok := r.retries.(int64)
	if !ok {
		return errors.New("the retries column of the row is not an integer")
	}
	r.msg.Retries = int(retries)
	var err error
	if r.msg.Headers, err = decodeHeaders(r.headers); err != nil {
		return fmt.Errorf("the headers column of the row %w", err)
	}
	if r.msg.CreatedAt, err = e.dialect.Time.FromColumn(r.created); err != nil {
		return fmt.Errorf("the created_at column of the row is damaged: %w", err)
	}
	if r.due != nil {
		if r.msg.AvailableAt, err = e.dialect.Time.FromColumn(r.due); err != nil {
			return fmt.Errorf("the available_at column of the row is damaged: %w", err)
		}
	}
	if r.msg.Topic == "" {
		return errors.New("the topic column of the row is empty")
	}
	return nil
}

// maxErrorLength bounds what is kept of an error, in bytes.
const maxErrorLength = 2000

func errorText(err error) string {
	if err == nil {
		return ""
	}
	text := err.Error()
	if len(text) > maxErrorLength {
		text = text[:maxErrorLength] + " …"
	}
	return strings.ReplaceAll(strings.ToValidUTF8(text, "\uFFFD"), "\x00", "\uFFFD")
}

func parseIDs(ids []string) ([]int64, error) {
	parsed := make([]int64, len(ids))
	for i, id := range ids {
		n, err := claim.RowID(id)
		if err != nil {
			return nil, fmt.Errorf("%q is not the id of a message", id)
		}
		parsed[i] = n
	}
	return parsed, nil
}

// timeFrom is FromColumn for a column that may be null.
func (e *Engine) timeFrom(v any) (time.Time, error) {
	if v == nil {
		return time.Time{}, nil
	}
	return e.dialect.Time.FromColumn(v)
}
