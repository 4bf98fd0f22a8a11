-- One chunk, from the time $3 on: where the one before has ended, since what that has deleted may still be in the index. An
-- id alone does not tell a row: see settle.sql. For the last condition see sweep.sql.
DELETE FROM outbox_archive
WHERE ctid = ANY (ARRAY(
    SELECT ctid
    FROM outbox_archive
    WHERE status = 'processed' AND processed_at < $1::timestamptz AND processed_at >= $3::timestamptz
    ORDER BY processed_at
    LIMIT $2::bigint
    FOR UPDATE SKIP LOCKED
)) AND
      ($2::bigint IS NOT NULL OR (SELECT count(*) FROM generate_series(1, 7000000)) > lastval())
RETURNING processed_at;
