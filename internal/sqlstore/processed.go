package sqlstore

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/watermill-outbox/outbox"
)

// Processed is the outbox.ProcessedStore of an Engine.
type Processed struct{ engine *Engine }

// Processed returns the record of handled messages.
func (e *Engine) Processed() *Processed { return &Processed{engine: e} }

// RunInTx implements outbox.Transactor.
func (p *Processed) RunInTx(ctx context.Context, fn func(ctx context.Context, tx any) error) error {
	return p.engine.RunInTx(ctx, fn)
}

// maxIDLength is the longest group or message id that is kept as it is, in bytes; every database can index that. Longer
// ones, and what is no text to every database, are kept as their SHA-256.
const maxIDLength = 255

func storedID(id string) string {
	const prefix = "sha256:"
	isText := utf8.ValidString(id) && strings.IndexByte(id, 0) < 0
	if len(id) <= maxIDLength && isText && !strings.HasPrefix(id, prefix) { // an id that looks like a hash is no hash of another
		return id
	}
	sum := sha256.Sum256([]byte(id))
	return prefix + hex.EncodeToString(sum[:])
}

// connOf returns what a ProcessedStore's db argument means.
func (e *Engine) connOf(db any) (Conn, error) {
	if db == nil || e.db.IsHandle(db) {
		return e.db, nil
	}
	conn, err := e.db.AsTx(db)
	if err != nil {
		return nil, fmt.Errorf("%s: %w, or nil or the handle that the store was made from, for a transaction of its own",
			e.dialect.Name, err)
	}
	return conn, nil
}

// IsProcessed implements outbox.ProcessedStore.
func (p *Processed) IsProcessed(ctx context.Context, db any, group, msgID string) (bool, error) {
	conn, err := p.engine.connOf(db)
	if err != nil {
		return false, err
	}
	n := 0
	err = conn.Query(ctx, p.engine.sql["processed_get"], []any{storedID(group), storedID(msgID)}, func(s Scanner) (bool, error) {
		return true, s.Scan(&n)
	})
	return n > 0, p.engine.fail("look up a handled message", err)
}

// MarkProcessed implements outbox.ProcessedStore.
func (p *Processed) MarkProcessed(
	ctx context.Context, db any, group, msgID string, metadata json.RawMessage,
) (bool, error) {
	const doing = "record a handled message"
	switch {
	case group == "" || msgID == "":
		return false, p.engine.fail(doing, errors.New("the group and the message id must not be empty"))
	case metadata != nil && !json.Valid(metadata):
		return false, p.engine.fail(doing, errors.New("the metadata is not valid JSON"))
	}
	conn, err := p.engine.connOf(db)
	if err != nil {
		return false, err
	}
	var stored any
	if metadata != nil {
		stored = string(metadata)
	}
	n, err := conn.Exec(ctx, p.engine.sql["processed_mark"], storedID(group), storedID(msgID), stored)
	return n > 0, p.engine.fail(doing, err)
}

// PurgeProcessedBefore implements outbox.ProcessedStore. It deletes in chunks; without a transaction in db, each is one.
func (p *Processed) PurgeProcessedBefore(ctx context.Context, db any, t time.Time) (int64, error) {
	conn, err := p.engine.connOf(db)
	if err != nil {
		return 0, err
	}
	return p.engine.purge(ctx, conn, "processed_purge", t)
}

var _ interface {
	outbox.ProcessedStore
	outbox.Transactor
} = (*Processed)(nil)

var _ interface {
	outbox.LeasedStore
	outbox.Transactor
	outbox.TopicPauser
	outbox.Leader
	outbox.TermReporter
	outbox.SchemaChecker
	outbox.Inspector
	outbox.StatsReporter
} = (*Engine)(nil)
