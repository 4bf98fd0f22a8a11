-- One chunk, so that writers wait for a moment only. An id alone does not tell a row: see archive.sql.
DELETE FROM outbox_archive
WHERE rowid IN (
    SELECT rowid
    FROM outbox_archive
    WHERE status = 'processed' AND processed_at < ?1 AND processed_at >= ?3
    ORDER BY processed_at
    LIMIT ?2
)
RETURNING processed_at;
