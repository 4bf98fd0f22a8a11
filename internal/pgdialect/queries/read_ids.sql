-- Up to $2 rows by their ids.
SELECT id, slot,
       CASE WHEN mine THEN uuid ELSE '' END, CASE WHEN mine THEN topic ELSE '' END, CASE WHEN mine THEN key ELSE '' END,
       CASE WHEN mine THEN payload ELSE '' END, CASE WHEN mine THEN headers::text ELSE '{}' END,
       retries::bigint, available_at, CASE WHEN mine THEN last_error ELSE '' END, created_at
FROM (
    SELECT *, slot = ANY ($3::bigint[]) AS mine
    FROM outbox_messages
    WHERE id = ANY ($1::bigint[])
    LIMIT $2::bigint
) m;
