-- Pending messages by topic, counted as in stats.sql.
WITH t AS MATERIALIZED (
    SELECT s.last_value - 100000 AS old,
           least(100, 100000::numeric / greatest(1, pg_relation_size(d.refobjid::regclass)::numeric / 8192.0)) AS percent
    FROM outbox_messages_id_seq s
    JOIN pg_depend d ON d.classid = 'pg_class'::regclass::oid AND d.objid = s.tableoid AND d.deptype = 'i'
)
SELECT topic, sum(n)::bigint
FROM t, LATERAL (
    SELECT topic, count(*) AS n
    FROM (SELECT topic FROM outbox_messages WHERE id > old AND id <= 9223372036854775807) m
    GROUP BY topic
    UNION ALL
    SELECT topic, (count(*) * 100)::numeric / percent
    FROM (SELECT id, topic FROM outbox_messages TABLESAMPLE SYSTEM (percent) REPEATABLE (0) LIMIT 120000) m
    WHERE id <= old
    GROUP BY topic
) counted
GROUP BY topic;
