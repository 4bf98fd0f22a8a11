package sqlstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// CheckSchema implements outbox.SchemaChecker.
func (e *Engine) CheckSchema(ctx context.Context) error {
	err := e.db.Query(ctx, e.sql["check"], nil, func(Scanner) (bool, error) { return true, nil })
	if err == nil && e.dialect.Late {
		if err = e.checkSequence(ctx); err == nil {
			err = e.checkSettings(ctx)
		}
	}
	return e.fail("check the schema", err)
}

func (e *Engine) checkSequence(ctx context.Context) error {
	table, sequence, wrong := e.names.Table("outbox_messages"), e.names.Table("outbox_messages_id_seq"), ""
	err := e.db.Query(ctx, e.sql["check_sequence"], []any{table, sequence}, func(s Scanner) (bool, error) {
		return true, s.Scan(&wrong)
	})
	if err == nil && wrong != "" {
		err = fmt.Errorf("the ids of %s: %s; messages could be missed: ALTER TABLE %s ALTER COLUMN id SET GENERATED ALWAYS "+
			"SET CACHE 1 SET INCREMENT BY 1 SET NO CYCLE, and ALTER SEQUENCE ... RENAME TO %s", table, wrong, table, e.names.Bare("outbox_messages_id_seq"))
	}
	return err
}

// checkSettings refuses a database in which a text may be written that cannot be read, and a session whose values the driver
// does not understand.
func (e *Engine) checkSettings(ctx context.Context) error {
	var encoding, dateStyle, byteaOutput string
	err := e.db.Query(ctx, e.sql["check_settings"], nil, func(s Scanner) (bool, error) {
		return true, s.Scan(&encoding, &dateStyle, &byteaOutput)
	})
	if err != nil {
		return err
	}
	if encoding != "UTF8" {
		return fmt.Errorf("the database has the encoding %s, must be UTF8: one driver would write what another cannot read", encoding)
	}
	want, understood := time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC), false
	err = e.db.Query(ctx, e.sql["check_values"], nil, func(s Scanner) (bool, error) {
		var column any
		var binary []byte
		if err := s.Scan(&column, &binary); err != nil {
			return false, err
		}
		at, err := e.timeFrom(column)
		understood = at.Equal(want) && bytes.Equal(binary, []byte{0, 0xff})
		return true, err
	})
	usual := strings.HasPrefix(dateStyle, "ISO") && byteaOutput == "hex"
	if understood || (err != nil && usual) {
		return err
	}
	if err == nil {
		err = errors.New("they come out wrong")
	}
	return fmt.Errorf("the driver does not understand times with DateStyle %q, or bytes with bytea_output %q: ALTER ROLE ... SET "+
		"DateStyle TO ISO, and SET bytea_output TO hex (%w)", dateStyle, byteaOutput, err)
}
