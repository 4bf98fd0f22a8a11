-- One chunk, so that writers wait for a moment only.
DELETE FROM outbox_processed
WHERE (consumer_group, message_id) IN (
    SELECT consumer_group, message_id
    FROM outbox_processed
    WHERE processed_at < ?1
    LIMIT ?2
);
