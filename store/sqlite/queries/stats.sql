-- Pending messages; since when the one that has been due longest is due, or null: of those that were neither delayed nor
-- tried the first, and of the others, which outbox_messages_due_idx finds, whichever it is; messages set aside; and now.
SELECT (SELECT count(*) FROM outbox_messages),
       (SELECT created_at FROM outbox_messages WHERE available_at IS NULL ORDER BY id LIMIT 1),
       (SELECT min(CASE WHEN retries = 0 THEN available_at ELSE created_at END)
        FROM outbox_messages
        WHERE available_at IS NOT NULL AND
              (retries > 0 OR available_at <= CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER))),
       (SELECT count(*) FROM outbox_archive WHERE status = 'failed'),
       CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER);
