DELETE FROM outbox_archive
WHERE status = 'failed' AND id IN (SELECT value FROM json_each(?1));
