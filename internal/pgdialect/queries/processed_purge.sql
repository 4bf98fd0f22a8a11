-- One chunk, as in archive_purge.sql. For the last condition see sweep.sql.
DELETE FROM outbox_processed
WHERE ctid = ANY (ARRAY(
    SELECT ctid
    FROM outbox_processed
    WHERE processed_at < $1::timestamptz AND processed_at >= $3::timestamptz
    ORDER BY processed_at
    LIMIT $2::bigint
    FOR UPDATE SKIP LOCKED
)) AND
      ($2::bigint IS NOT NULL OR (SELECT count(*) FROM generate_series(1, 7000000)) > lastval())
RETURNING processed_at;
