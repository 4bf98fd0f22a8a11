SELECT count(*)
FROM outbox_processed
WHERE consumer_group = ?1 AND message_id = ?2;
