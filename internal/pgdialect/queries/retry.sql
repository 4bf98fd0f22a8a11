-- Records failed attempts: arrays of ids, uuids, milliseconds to wait, retries and errors. The conditions are those of
-- delete.sql.
UPDATE outbox_messages m
SET retries = failed.retries,
    last_error = failed.last_error,
    available_at = clock_timestamp() + failed.wait * interval '1 millisecond'
FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::bigint[], $5::text[]) AS failed (id, uuid, wait, retries, last_error)
WHERE m.id = ANY (ARRAY[failed.id]) AND m.uuid = ANY (ARRAY[failed.uuid]) AND
      ($1::bigint[] IS NOT NULL OR (SELECT count(*) FROM generate_series(1, 7000000)) > lastval());
