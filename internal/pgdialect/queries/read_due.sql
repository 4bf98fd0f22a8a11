-- The rows that fall due behind ($1, $2) and up to the time $3, by a range of outbox_messages_due_idx and nothing else to
-- choose a plan by. Payloads are those of messages in the slots $6 that were not tried yet, with ids up to $4, which the read
-- by id has passed. For the last condition see sweep.sql.
SELECT id, slot,
       CASE WHEN mine THEN uuid ELSE '' END, CASE WHEN mine THEN topic ELSE '' END, CASE WHEN mine THEN key ELSE '' END,
       CASE WHEN mine THEN payload ELSE '' END, CASE WHEN mine THEN headers::text ELSE '{}' END,
       retries::bigint, available_at, CASE WHEN mine THEN last_error ELSE '' END, created_at
FROM (
    SELECT *, $6::bigint >> slot::integer & 1::bigint = 1 AND retries = 0 AND id <= $4::bigint AS mine
    FROM outbox_messages
    WHERE available_at IS NOT NULL AND (available_at, id) > ($1::timestamptz, $2::bigint) AND
          (available_at, id) <= ($3::timestamptz, 9223372036854775807)
    ORDER BY available_at, id
    LIMIT $5::bigint
) m
WHERE $5::bigint IS NOT NULL OR (SELECT count(*) FROM generate_series(1, 7000000)) > lastval();
