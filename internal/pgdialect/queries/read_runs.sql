-- The rows from $1[i] to $2[i], for each i in order, as read gives them.
SELECT id, slot,
       CASE WHEN mine THEN uuid ELSE '' END, CASE WHEN mine THEN topic ELSE '' END, CASE WHEN mine THEN key ELSE '' END,
       CASE WHEN mine THEN payload ELSE '' END, CASE WHEN mine THEN headers::text ELSE '{}' END,
       retries::bigint, available_at, CASE WHEN mine THEN last_error ELSE '' END, created_at
FROM (
    SELECT m.*, m.slot = ANY ($4::bigint[]) AS mine
    FROM unnest($1::bigint[], $2::bigint[]) AS runs (first, last)
    CROSS JOIN LATERAL (
        SELECT *
        FROM outbox_messages
        WHERE id >= first AND id <= last
        ORDER BY id
        LIMIT $3::bigint
    ) m
    ORDER BY id
    LIMIT $3::bigint
) m;
