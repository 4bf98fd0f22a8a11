-- Copies the rows that a JSON array of [id, uuid, status, retries, last_error] names to the archive.
INSERT OR REPLACE INTO outbox_archive (
    id, uuid, topic, key, payload, headers, retries, available_at, last_error, created_at, status, processed_at
)
SELECT m.id, m.uuid, m.topic, m.key, m.payload, m.headers, j.value ->> 3, m.available_at, j.value ->> 4, m.created_at,
       j.value ->> 2, CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)
FROM json_each(?1) j CROSS JOIN outbox_messages m ON m.id = j.value ->> 0
WHERE CAST(m.uuid AS TEXT) = j.value ->> 1 OR j.value ->> 1 IS NULL;
