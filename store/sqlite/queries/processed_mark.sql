INSERT INTO outbox_processed (consumer_group, message_id, metadata)
VALUES (?1, ?2, ?3)
ON CONFLICT (consumer_group, message_id) DO NOTHING;
