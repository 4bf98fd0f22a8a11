-- Arrays of the columns. An empty text is no time.
INSERT INTO outbox_messages (uuid, topic, key, payload, headers, available_at)
SELECT uuid, topic, key, payload, headers::json, NULLIF(available_at, '')::timestamptz
FROM unnest($1::text[], $2::text[], $3::text[], $4::bytea[], $5::text[], $6::text[])
     WITH ORDINALITY AS rows (uuid, topic, key, payload, headers, available_at, number)
ORDER BY number;
