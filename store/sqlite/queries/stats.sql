SELECT (SELECT count(*) FROM outbox_messages),
       (SELECT created_at FROM outbox_messages ORDER BY id LIMIT 1),
       (SELECT count(*) FROM outbox_archive WHERE status = 'failed');
