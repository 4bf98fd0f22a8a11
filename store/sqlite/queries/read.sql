-- The rows above ?1 and up to ?2: a range of the primary key, and nothing else to choose a plan by.
SELECT id, 0 AS slot, uuid, topic, key, payload, headers, retries, available_at, last_error, created_at
FROM outbox_messages
WHERE id > ?1 AND id <= ?2
ORDER BY id
LIMIT ?3;
