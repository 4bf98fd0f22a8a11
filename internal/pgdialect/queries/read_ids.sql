-- Up to $2 rows by their ids, one by one as in delete.sql. For the last condition see sweep.sql.
SELECT id, slot,
       CASE WHEN mine THEN uuid ELSE '' END, CASE WHEN mine THEN topic ELSE '' END, CASE WHEN mine THEN key ELSE '' END,
       CASE WHEN mine THEN payload ELSE '' END, CASE WHEN mine THEN headers::text ELSE '{}' END,
       retries::bigint, available_at, CASE WHEN mine THEN last_error ELSE '' END, created_at
FROM (
    SELECT m.*, $3::bigint >> m.slot::integer & 1::bigint = 1 AS mine
    FROM pg_catalog.unnest($1::bigint[]) AS wanted (number)
    CROSS JOIN LATERAL (SELECT * FROM outbox_messages WHERE id = number LIMIT 1) m
    LIMIT $2::bigint
) m
WHERE $2::bigint IS NOT NULL OR (SELECT count(*) FROM generate_series(1, 7000000)) > lastval();
