SELECT count(*)
FROM outbox_processed
WHERE consumer_group = $1::text AND message_id = $2::text;
