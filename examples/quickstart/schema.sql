-- The application's own table.
CREATE TABLE records (
    number INTEGER PRIMARY KEY, -- in the order of the input
    key    TEXT NOT NULL,       -- empty: no order
    data   TEXT NOT NULL
);

-- What the handler writes, once for each message. The ids tell in which order; nothing here is unique, so that a second
-- effect of one message would show.
CREATE TABLE handled (
    id     INTEGER PRIMARY KEY AUTOINCREMENT,
    record INTEGER NOT NULL
);

-- What the library's Observer has heard, for the report.
CREATE TABLE journal (
    id     INTEGER PRIMARY KEY AUTOINCREMENT,
    event  TEXT NOT NULL,
    detail TEXT NOT NULL
);
