-- Delayed messages that were not tried yet and have fallen due, in the order of outbox_messages_due_idx: behind
-- (?1, ?2), up to the time ?3, among the ids up to ?4 that the read by id has passed.
SELECT id, 0 AS slot, uuid, topic, key, payload, headers, retries, available_at, last_error, created_at
FROM outbox_messages
WHERE available_at IS NOT NULL AND (available_at, id) > (?1, ?2) AND available_at <= ?3 AND id <= ?4 AND retries = 0
ORDER BY available_at, id
LIMIT ?5;
