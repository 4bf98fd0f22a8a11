INSERT INTO outbox_messages (uuid, topic, key, payload, headers, available_at)
VALUES (?, ?, ?, ?, ?, ?);
