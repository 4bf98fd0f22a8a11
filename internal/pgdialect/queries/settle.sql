-- Settles rows in one statement, so that nobody who is cut off leaves locks behind: copies some to the archive (arrays $1 to $5
-- of ids, uuids, statuses, retries and errors), deletes these and others ($6, $7), and records failed attempts of others
-- ($8 to $12: ids, uuids, milliseconds to wait, retries and errors). The conditions are those of delete.sql.
WITH archived AS (
    INSERT INTO outbox_archive (
        id, uuid, topic, key, payload, headers, retries, available_at, last_error, created_at, status, processed_at
    )
    SELECT m.id, m.uuid, m.topic, m.key, m.payload, m.headers, done.retries, m.available_at, done.last_error, m.created_at,
           done.status, clock_timestamp()
    FROM (
        SELECT *
        FROM unnest((SELECT $1::bigint[]), (SELECT $2::text[]), (SELECT $3::text[]), (SELECT $4::bigint[]),
            (SELECT $5::text[]))
            AS all_done (id, uuid, status, retries, last_error)
        WHERE id + 0 = id
    ) done
    JOIN outbox_messages m ON m.id = ANY (ARRAY[done.id]) AND m.uuid = ANY (ARRAY[done.uuid])
    ON CONFLICT (id, uuid) DO UPDATE
    SET status = excluded.status, retries = excluded.retries, last_error = excluded.last_error,
        processed_at = excluded.processed_at
), deleted AS (
    DELETE FROM outbox_messages m
    USING (
        SELECT id, uuid FROM unnest((SELECT $6::bigint[]), (SELECT $7::text[])) AS all_done (id, uuid) WHERE id + 0 = id
    ) done
    WHERE m.id = ANY (ARRAY[done.id]) AND m.uuid = ANY (ARRAY[done.uuid])
)
UPDATE outbox_messages m
SET retries = failed.retries,
    last_error = failed.last_error,
    available_at = clock_timestamp() + failed.wait::float8 * interval '1 millisecond'
FROM (
    SELECT *
    FROM unnest((SELECT $8::bigint[]), (SELECT $9::text[]), (SELECT $10::bigint[]), (SELECT $11::bigint[]),
        (SELECT $12::text[]))
        AS all_failed (id, uuid, wait, retries, last_error)
    WHERE id + 0 = id
) failed
WHERE m.id = ANY (ARRAY[failed.id]) AND m.uuid = ANY (ARRAY[failed.uuid]) AND
      ($1::bigint[] IS NOT NULL OR (SELECT count(*) FROM generate_series(1, 7000000)) > lastval());
