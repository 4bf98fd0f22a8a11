-- What is needed of the rows above $1 and up to $2 to tell whether they are known.
SELECT id, slot, key, topic, retries::bigint, available_at
FROM outbox_messages
WHERE id > $1::bigint AND id <= $2::bigint
ORDER BY id
LIMIT $3::bigint;
