-- Delayed messages that were not tried yet and have fallen due, and retries of slots in $6, in the order of
-- outbox_messages_due_idx: behind ($1, $2), up to the time $3, among the ids up to $4 that the read by id has passed.
-- For the last condition see read.sql.
SELECT id, slot,
       CASE WHEN mine THEN uuid ELSE '' END, CASE WHEN mine THEN topic ELSE '' END, CASE WHEN mine THEN key ELSE '' END,
       CASE WHEN mine THEN payload ELSE '' END, CASE WHEN mine THEN headers::text ELSE '{}' END,
       retries::bigint, available_at, CASE WHEN mine THEN last_error ELSE '' END, created_at
FROM (
    SELECT *, true AS mine
    FROM outbox_messages
    WHERE available_at IS NOT NULL AND (available_at, id) > ($1::timestamptz, $2::bigint) AND
          available_at <= $3::timestamptz AND id <= $4::bigint AND retries = 0 AND slot = ANY ($6::bigint[])
    ORDER BY available_at, id
    LIMIT $5::bigint
) m
WHERE $5::bigint IS NOT NULL OR (SELECT count(*) FROM generate_series(1, 7000000)) > 0;
