-- The rows from $1[i] to $2[i], for each i in order, as read gives them, and after read_settings.sql as well. The runs ascend,
-- and so do the rows of each: a sort by id would read all runs, of which there may be 100,000, for each page.
SELECT id, slot,
       CASE WHEN mine THEN uuid ELSE '' END, CASE WHEN mine THEN topic ELSE '' END, CASE WHEN mine THEN key ELSE '' END,
       CASE WHEN mine THEN payload ELSE '' END, CASE WHEN mine THEN headers::text ELSE '{}' END,
       retries::bigint, available_at, CASE WHEN mine THEN last_error ELSE '' END, created_at
FROM (
    SELECT m.*, $4::bigint >> m.slot::integer & 1::bigint = 1 AS mine
    FROM unnest($1::bigint[], $2::bigint[]) WITH ORDINALITY AS runs (first, last, number)
    CROSS JOIN LATERAL (
        SELECT *
        FROM outbox_messages
        WHERE id >= first AND id <= last
        ORDER BY id
        LIMIT $3::bigint
    ) m
    ORDER BY number
    LIMIT $3::bigint
) m;
