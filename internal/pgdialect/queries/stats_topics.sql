-- Pending messages by topic: all of them up to about 100,000, a sample of as many above.
SELECT topic, (count(*) * 100 / share.percent)::bigint
FROM (
    SELECT least(100, 100 * 100000 / greatest(1, max(reltuples / greatest(relpages, 1)) * (max(pg_relation_size(oid)) / 8192)))
               AS percent
    FROM pg_class
    WHERE oid = (SELECT tableoid FROM outbox_messages LIMIT 1)
) share, LATERAL (
    SELECT topic
    FROM outbox_messages TABLESAMPLE SYSTEM (share.percent)
) sample
GROUP BY topic, share.percent;
