-- The table in which goose records what was applied, with goose's columns. Each statement may be run any number of
-- times and by several processes at once.

-- A migration and its row here commit together, so the unique version is what keeps two processes that found the same
-- migration missing from both applying it.
CREATE TABLE IF NOT EXISTS outbox_version (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    version_id INTEGER NOT NULL UNIQUE,
    is_applied INTEGER NOT NULL,
    tstamp     TIMESTAMP DEFAULT (datetime('now'))
);

-- goose wants to find a version below the first one.
INSERT OR IGNORE INTO outbox_version (version_id, is_applied) VALUES (0, 1);
