-- Settles rows in one statement, so that nobody who is cut off leaves locks behind: copies some to the archive (arrays $1 to $5
-- of ids, uuids, statuses, retries and errors), deletes these and others ($6, $7), and records failed attempts of others
-- ($8 to $12: ids, uuids, milliseconds to wait, retries and errors). The conditions are those of delete.sql.
WITH archived AS (
    INSERT INTO outbox_archive (
        id, uuid, topic, key, payload, headers, retries, available_at, last_error, created_at, status, processed_at
    )
    SELECT m.id, m.uuid, m.topic, m.key, m.payload, m.headers, done.retries, m.available_at, done.last_error, m.created_at,
           done.status, clock_timestamp()
    FROM unnest($1::bigint[], $2::text[], $3::text[], $4::bigint[], $5::text[]) AS done (id, uuid, status, retries, last_error)
    JOIN outbox_messages m ON m.id = ANY (ARRAY[done.id]) AND m.uuid = ANY (ARRAY[done.uuid])
    ON CONFLICT (id, uuid) DO UPDATE
    SET status = excluded.status, retries = excluded.retries, last_error = excluded.last_error,
        processed_at = excluded.processed_at
), deleted AS (
    DELETE FROM outbox_messages m
    USING unnest($6::bigint[], $7::text[]) AS done (id, uuid)
    WHERE m.id = ANY (ARRAY[done.id]) AND m.uuid = ANY (ARRAY[done.uuid])
)
UPDATE outbox_messages m
SET retries = failed.retries,
    last_error = failed.last_error,
    available_at = clock_timestamp() + failed.wait * interval '1 millisecond'
FROM unnest($8::bigint[], $9::text[], $10::bigint[], $11::bigint[], $12::text[]) AS failed (id, uuid, wait, retries, last_error)
WHERE m.id = ANY (ARRAY[failed.id]) AND m.uuid = ANY (ARRAY[failed.uuid]) AND
      ($1::bigint[] IS NOT NULL OR (SELECT count(*) FROM generate_series(1, 7000000)) > lastval());
