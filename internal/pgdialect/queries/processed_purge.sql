-- One chunk.
DELETE FROM outbox_processed
WHERE ctid = ANY (ARRAY(
    SELECT ctid
    FROM outbox_processed
    WHERE processed_at < $1::timestamptz
    ORDER BY processed_at
    LIMIT $2::bigint
    FOR UPDATE SKIP LOCKED
));
