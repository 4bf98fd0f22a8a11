INSERT INTO outbox_messages (uuid, topic, key, payload, headers, available_at)
VALUES ($1::text, $2::text, $3::text, $4::bytea, $5::text::json, $6::timestamptz);
