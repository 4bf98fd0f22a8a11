SELECT count(*)
FROM outbox_archive
WHERE status = 'failed';
