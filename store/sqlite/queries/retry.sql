-- Records failed attempts: a JSON array of [id, uuid, milliseconds to wait, retries, last_error].
UPDATE outbox_messages
SET retries = j.value ->> 3,
    last_error = j.value ->> 4,
    available_at = CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) + (j.value ->> 2)
FROM json_each(?1) j
WHERE outbox_messages.id = j.value ->> 0 AND (CAST(outbox_messages.uuid AS TEXT) = j.value ->> 1 OR j.value ->> 1 IS NULL);
