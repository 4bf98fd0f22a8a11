-- Pending messages, counted up to 100,000 and estimated above; since when the one that has been due longest is due, or null:
-- of those that were neither delayed nor tried the first, and of the others, which outbox_messages_due_idx finds, whichever
-- it is; messages set aside; and now.
SELECT CASE
           WHEN counted.n <= 100000 THEN counted.n
           ELSE greatest(counted.n, (
               SELECT (reltuples / greatest(relpages, 1) * (pg_relation_size(oid) / 8192))::bigint
               FROM pg_class
               WHERE oid = (SELECT tableoid FROM outbox_messages LIMIT 1)
           ))
       END,
       (SELECT created_at FROM outbox_messages WHERE available_at IS NULL ORDER BY id LIMIT 1),
       (SELECT min(CASE WHEN retries = 0 THEN available_at ELSE created_at END)
        FROM outbox_messages
        WHERE available_at IS NOT NULL AND (retries > 0 OR available_at <= clock_timestamp())),
       (SELECT count(*) FROM outbox_archive WHERE status = 'failed'),
       clock_timestamp()
FROM (SELECT count(*) AS n FROM (SELECT FROM outbox_messages LIMIT 100001) few) counted;
