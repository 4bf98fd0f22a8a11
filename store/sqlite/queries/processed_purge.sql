-- One chunk, so that writers wait for a moment only.
DELETE FROM outbox_processed
WHERE (consumer_group, message_id) IN (
    SELECT consumer_group, message_id
    FROM outbox_processed
    WHERE processed_at < ?1 AND processed_at >= ?3
    ORDER BY processed_at
    LIMIT ?2
)
RETURNING processed_at;
