-- For the conditions see sweep.sql.
SELECT id, uuid, topic, key, payload, headers::text, retries::bigint, available_at, last_error, created_at, processed_at
FROM (
    SELECT *
    FROM outbox_archive
    WHERE status = 'failed' AND id > $1::bigint AND (id, id) <= (9223372036854775807, 9223372036854775807)
    ORDER BY id
    LIMIT $2::bigint
) failed
WHERE $2::bigint IS NOT NULL OR (SELECT count(*) FROM generate_series(1, 7000000)) > lastval();
