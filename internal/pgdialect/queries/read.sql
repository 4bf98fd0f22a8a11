-- The rows above $1 and up to $2; of slots that are not in $4 no more than the ids. It comes after read_settings.sql, whose
-- settings leave one plan for it: along the primary key.
SELECT id, slot,
       CASE WHEN mine THEN uuid ELSE '' END, CASE WHEN mine THEN topic ELSE '' END, CASE WHEN mine THEN key ELSE '' END,
       CASE WHEN mine THEN payload ELSE '' END, CASE WHEN mine THEN headers::text ELSE '{}' END,
       retries::bigint, available_at, CASE WHEN mine THEN last_error ELSE '' END, created_at
FROM (
    SELECT *, $4::bigint >> slot::integer & 1::bigint = 1 AS mine
    FROM outbox_messages
    WHERE id > $1::bigint AND id <= $2::bigint
    ORDER BY id
    LIMIT $3::bigint
) m;
