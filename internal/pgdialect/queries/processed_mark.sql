INSERT INTO outbox_processed (consumer_group, message_id, metadata)
VALUES ($1::text, $2::text, $3::text::json)
ON CONFLICT (consumer_group, message_id) DO NOTHING;
