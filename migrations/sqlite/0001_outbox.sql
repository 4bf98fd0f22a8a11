-- +goose Up

-- Times are milliseconds since 1970 in UTC, by the clock of the database: strftime('%s') has seconds only, and
-- unixepoch('subsec') is of SQLite 3.42.

-- Pending messages only, so that this table stays small. Any language may insert: topic and payload are enough.
CREATE TABLE outbox_messages (
    -- The relay reads on from the last id it has seen. Without AUTOINCREMENT SQLite gives the id of a deleted last row
    -- again, behind the relay's back.
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    -- What consumers deduplicate on. Not unique: one message may go to two topics, or be requeued.
    uuid         TEXT    NOT NULL DEFAULT (lower(hex(randomblob(16)))),
    topic        TEXT    NOT NULL,
    -- Messages with the same key are published in the order of their ids; those without one in any order.
    key          TEXT    NOT NULL DEFAULT '',
    payload      BLOB    NOT NULL DEFAULT x'',
    -- A JSON object of strings.
    headers      TEXT    NOT NULL DEFAULT '{}',
    retries      INTEGER NOT NULL DEFAULT 0,
    -- Null unless the message is delayed or waits for its next attempt.
    available_at INTEGER,
    last_error   TEXT    NOT NULL DEFAULT '',
    created_at   INTEGER NOT NULL DEFAULT (CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER))
);

-- What falls due, without reading what is not. Partial, so that an ordinary message costs no second index write.
CREATE INDEX outbox_messages_due_idx ON outbox_messages (available_at, id) WHERE available_at IS NOT NULL;

-- Published messages that are kept for a while, and those that were set aside. Rows keep the id they had above and are
-- copied whole, so nothing has a default.
CREATE TABLE outbox_archive (
    id           INTEGER NOT NULL,
    uuid         TEXT    NOT NULL,
    topic        TEXT    NOT NULL,
    key          TEXT    NOT NULL,
    payload      BLOB    NOT NULL,
    headers      TEXT    NOT NULL,
    retries      INTEGER NOT NULL,
    available_at INTEGER,
    last_error   TEXT    NOT NULL,
    created_at   INTEGER NOT NULL,
    status       TEXT    NOT NULL CHECK (status IN ('processed', 'failed')),
    processed_at INTEGER NOT NULL,
    -- A database that was restored gives ids again.
    PRIMARY KEY (id, uuid)
);

-- For retention, which must not read past what was set aside.
CREATE INDEX outbox_archive_processed_idx ON outbox_archive (processed_at) WHERE status = 'processed';

-- For listing what was set aside, page by page, among a much larger number of processed rows.
CREATE INDEX outbox_archive_failed_idx ON outbox_archive (id) WHERE status = 'failed';

-- Who relays. SQLite has one writer, so one slot for all keys is enough.
CREATE TABLE outbox_slots (
    slot       INTEGER PRIMARY KEY,
    -- Empty while nobody holds the slot.
    owner      TEXT    NOT NULL DEFAULT '',
    expires_at INTEGER NOT NULL DEFAULT 0
);

INSERT INTO outbox_slots (slot) VALUES (0);

-- What consumers have handled. All reads are by the primary key, so the rows live in it: one B-tree instead of two.
CREATE TABLE outbox_processed (
    consumer_group TEXT    NOT NULL,
    message_id     TEXT    NOT NULL,
    processed_at   INTEGER NOT NULL DEFAULT (CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)),
    -- Null or JSON.
    metadata       TEXT,
    PRIMARY KEY (consumer_group, message_id)
) WITHOUT ROWID;

-- For the purge.
CREATE INDEX outbox_processed_at_idx ON outbox_processed (processed_at);

-- +goose Down

-- Indexes go with their tables.
DROP TABLE IF EXISTS outbox_processed;
DROP TABLE IF EXISTS outbox_slots;
DROP TABLE IF EXISTS outbox_archive;
DROP TABLE IF EXISTS outbox_messages;
