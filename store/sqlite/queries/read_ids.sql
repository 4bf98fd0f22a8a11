-- Up to ?2 rows by their ids, a JSON array in ?1.
SELECT id, 0 AS slot, uuid, topic, key, payload, headers, retries, available_at, last_error, created_at
FROM outbox_messages
WHERE id IN (SELECT value FROM json_each(?1))
LIMIT ?2;
