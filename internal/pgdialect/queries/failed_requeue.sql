-- A new id puts the message behind all that wait. Whoever else is about to requeue or discard it waits, and finds it gone.
-- For the last condition see sweep.sql.
INSERT INTO outbox_messages (uuid, topic, key, payload, headers, created_at)
SELECT uuid, topic, key, payload, headers, created_at
FROM (
    SELECT *
    FROM outbox_archive
    WHERE status = 'failed' AND id = ANY ($1::bigint[])
    ORDER BY id
    FOR UPDATE
) failed
WHERE $1::bigint[] IS NOT NULL OR (SELECT count(*) FROM generate_series(1, 7000000)) > lastval()
ORDER BY id;
