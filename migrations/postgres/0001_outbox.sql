-- +goose Up

-- Pending messages only, so that this table stays small. Any language may insert: topic and payload are enough.
CREATE TABLE outbox_messages (
    -- The relay reads on from the last id it has seen, and goes by the locks on this sequence to know who may commit a
    -- lower one: its cache must stay 1.
    id           bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- What consumers deduplicate on. Not unique: one message may go to two topics, or be requeued.
    uuid         text        NOT NULL DEFAULT gen_random_uuid()::text,
    topic        text        NOT NULL,
    -- Messages with the same key are published in order; those without one in any order.
    key          text        NOT NULL DEFAULT '',
    payload      bytea       NOT NULL DEFAULT '',
    -- An object of strings. Not jsonb, which refuses a NUL in a string.
    headers      json        NOT NULL DEFAULT '{}',
    retries      integer     NOT NULL DEFAULT 0,
    -- Null unless the message is delayed or waits for its next attempt.
    available_at timestamptz,
    last_error   text        NOT NULL DEFAULT '',
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Relay instances share the messages by it. (md5 fails where FIPS is on, and convert_to is not immutable.) With exactly
    -- these types it is PostgreSQL's own function, whatever else the search_path has.
    slot         smallint    NOT NULL GENERATED ALWAYS AS
                                 ((hashtextextended(CASE key WHEN '' THEN uuid ELSE key END, 0::bigint) & 63::bigint)::smallint) STORED
);

-- Rows come and go: vacuum by what has gone, and not by a share of what may be a large backlog.
ALTER TABLE outbox_messages SET (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 100000,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 10000
);

-- What falls due, without reading what is not. Partial, so that an ordinary message costs no second index write.
CREATE INDEX outbox_messages_due_idx ON outbox_messages (available_at, id) WHERE available_at IS NOT NULL;

-- Published messages that are kept for a while, and those that were set aside. Rows keep the id they had above and are
-- copied whole, so nothing has a default.
CREATE TABLE outbox_archive (
    id           bigint      NOT NULL,
    uuid         text        NOT NULL,
    topic        text        NOT NULL,
    key          text        NOT NULL,
    payload      bytea       NOT NULL,
    headers      json        NOT NULL,
    retries      integer     NOT NULL,
    available_at timestamptz,
    last_error   text        NOT NULL,
    created_at   timestamptz NOT NULL,
    status       text        NOT NULL CHECK (status IN ('processed', 'failed')),
    processed_at timestamptz NOT NULL,
    -- A database that was restored gives ids again.
    PRIMARY KEY (id, uuid)
);

-- For retention, which must not read past what was set aside.
CREATE INDEX outbox_archive_processed_idx ON outbox_archive (processed_at) WHERE status = 'processed';

-- For listing what was set aside, page by page, among a much larger number of processed rows.
CREATE INDEX outbox_archive_failed_idx ON outbox_archive (id) WHERE status = 'failed';

-- Who relays what.
CREATE TABLE outbox_slots (
    slot       smallint    PRIMARY KEY,
    -- Empty while nobody holds the slot.
    owner      text        NOT NULL DEFAULT '',
    expires_at timestamptz NOT NULL DEFAULT '-infinity'
);

INSERT INTO outbox_slots (slot) SELECT generate_series(0, 63);

-- Who is there to relay, so that each takes a fair share of the slots.
CREATE TABLE outbox_relays (
    name       text        PRIMARY KEY,
    expires_at timestamptz NOT NULL
);

-- What consumers have handled.
CREATE TABLE outbox_processed (
    consumer_group text        NOT NULL,
    message_id     text        NOT NULL,
    processed_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    metadata       json,
    PRIMARY KEY (consumer_group, message_id)
);

-- For the purge.
CREATE INDEX outbox_processed_at_idx ON outbox_processed (processed_at);

-- +goose Down

-- Indexes go with their tables.
DROP TABLE IF EXISTS outbox_processed;
DROP TABLE IF EXISTS outbox_relays;
DROP TABLE IF EXISTS outbox_slots;
DROP TABLE IF EXISTS outbox_archive;
DROP TABLE IF EXISTS outbox_messages;
