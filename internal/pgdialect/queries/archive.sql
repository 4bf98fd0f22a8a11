-- Copies rows to the archive: arrays of ids, uuids, statuses, retries and errors. The conditions are those of delete.sql.
INSERT INTO outbox_archive (
    id, uuid, topic, key, payload, headers, retries, available_at, last_error, created_at, status, processed_at
)
SELECT m.id, m.uuid, m.topic, m.key, m.payload, m.headers, done.retries, m.available_at, done.last_error, m.created_at,
       done.status, clock_timestamp()
FROM unnest($1::bigint[], $2::text[], $3::text[], $4::bigint[], $5::text[]) AS done (id, uuid, status, retries, last_error)
JOIN outbox_messages m ON m.id = ANY (ARRAY[done.id]) AND m.uuid = ANY (ARRAY[done.uuid])
WHERE $1::bigint[] IS NOT NULL OR (SELECT count(*) FROM generate_series(1, 7000000)) > lastval()
ON CONFLICT (id, uuid) DO UPDATE
SET status = excluded.status, retries = excluded.retries, last_error = excluded.last_error,
    processed_at = excluded.processed_at;
