-- What is needed of the rows above ?1 and up to ?2 to tell whether they are known.
SELECT id, 0 AS slot, key, topic, retries, available_at
FROM outbox_messages
WHERE id > ?1 AND id <= ?2
ORDER BY id
LIMIT ?3;
