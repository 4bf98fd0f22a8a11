DELETE FROM outbox_archive
WHERE status = 'failed' AND id = ANY ($1::bigint[]);
