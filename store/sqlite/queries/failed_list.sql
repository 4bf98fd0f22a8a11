SELECT id, uuid, topic, key, payload, headers, retries, available_at, last_error, created_at, processed_at
FROM outbox_archive
WHERE status = 'failed' AND id > ?1
ORDER BY id
LIMIT ?2;
