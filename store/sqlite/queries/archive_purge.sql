-- One chunk, so that writers wait for a moment only.
DELETE FROM outbox_archive
WHERE id IN (
    SELECT id
    FROM outbox_archive
    WHERE status = 'processed' AND processed_at < ?1
    LIMIT ?2
);
