-- Pending messages; since when the one that has been due longest is due, or null: of those that were neither delayed nor
-- tried, and of the others; messages set aside; and now.
--
-- While a transaction is open elsewhere dead rows stay: a count of the table, and a search for its first row, go over them,
-- a million in 0.4 s. So the messages with the last 100,000 ids are counted, and those before in 1000 blocks of the table,
-- always the same, which are all there are up to 8 MB; and the first row is searched for only where few are dead, else among
-- those that are counted. Of delayed messages no more than the first 20,000 are looked at. The upper bound of the ids, and
-- the limit of the sample, which it cannot exceed, tell PostgreSQL that little is read.
WITH t AS MATERIALIZED (
    SELECT s.last_value - 100000 AS old,
           pg_stat_get_dead_tuples(d.refobjid) <= 300000 AS clean,
           least(100, 100000::numeric / greatest(1, pg_relation_size(d.refobjid::regclass)::numeric / 8192.0)) AS percent
    FROM outbox_messages_id_seq s
    JOIN pg_depend d ON d.classid = 'pg_class'::regclass::oid AND d.objid = s.tableoid AND d.deptype = 'i'
)
SELECT newer.n + older.n,
       CASE WHEN clean THEN (SELECT created_at FROM outbox_messages WHERE available_at IS NULL ORDER BY id LIMIT 1)
            ELSE least(newer.created_at, older.created_at)
       END,
       (SELECT min(CASE WHEN retries = 0 THEN available_at ELSE created_at END)
        FROM (
            SELECT retries, available_at, created_at
            FROM outbox_messages
            WHERE available_at IS NOT NULL
            ORDER BY available_at, id
            LIMIT 20000
        ) m
        WHERE retries > 0 OR available_at <= clock_timestamp()),
       (SELECT count(*) FROM outbox_archive WHERE status = 'failed'),
       clock_timestamp()
FROM t, LATERAL (
    SELECT count(*) AS n, min(created_at) FILTER (WHERE available_at IS NULL) AS created_at
    FROM (SELECT available_at, created_at FROM outbox_messages WHERE id > old AND id <= 9223372036854775807) m
) newer, LATERAL (
    SELECT ((count(*) * 100)::numeric / percent)::bigint AS n, min(created_at) FILTER (WHERE available_at IS NULL) AS created_at
    FROM (
        SELECT id, available_at, created_at
        FROM outbox_messages TABLESAMPLE SYSTEM (percent) REPEATABLE (0)
        LIMIT 120000
    ) m
    WHERE id <= old
) older;
