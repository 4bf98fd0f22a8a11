-- Pending messages; how many milliseconds the oldest of those that are due has been due; messages that were set aside.
SELECT (SELECT count(*) FROM outbox_messages),
       coalesce((
           SELECT CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) -
                  CASE WHEN retries = 0 THEN coalesce(available_at, created_at) ELSE created_at END
           FROM outbox_messages
           WHERE available_at IS NULL OR retries > 0 OR
                 available_at <= CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)
           ORDER BY id
           LIMIT 1
       ), 0),
       (SELECT count(*) FROM outbox_archive WHERE status = 'failed');
