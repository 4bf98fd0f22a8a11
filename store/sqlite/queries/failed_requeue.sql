-- A new id puts the message behind all that wait.
INSERT INTO outbox_messages (uuid, topic, key, payload, headers, created_at)
SELECT uuid, topic, key, payload, headers, created_at
FROM outbox_archive
WHERE status = 'failed' AND id IN (SELECT value FROM json_each(?1))
ORDER BY id;
