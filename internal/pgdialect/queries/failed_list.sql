SELECT id, uuid, topic, key, payload, headers::text, retries::bigint, available_at, last_error, created_at, processed_at
FROM outbox_archive
WHERE status = 'failed' AND id > $1::bigint
ORDER BY id
LIMIT $2::bigint;
