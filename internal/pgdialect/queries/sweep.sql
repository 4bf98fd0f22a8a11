-- What is needed of the rows above $1 and up to $2 to tell whether they are known. For the
-- conditions see read.sql.
SELECT id, slot, key, topic, retries::bigint, available_at
FROM (
    SELECT *
    FROM outbox_messages
    WHERE id > $1::bigint AND (id, id) <= ($2::bigint, $2::bigint)
    ORDER BY id
    LIMIT $3::bigint
) m
WHERE $3::bigint IS NOT NULL OR (SELECT count(*) FROM generate_series(1, 7000000)) > lastval();
