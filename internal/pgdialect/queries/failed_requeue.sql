-- A new id puts the message behind all that wait. Whoever else is about to requeue or discard it waits, and finds it gone.
INSERT INTO outbox_messages (uuid, topic, key, payload, headers, created_at)
SELECT uuid, topic, key, payload, headers, created_at
FROM (
    SELECT *
    FROM outbox_archive
    WHERE status = 'failed' AND id = ANY ($1::bigint[])
    ORDER BY id
    FOR UPDATE
) failed
ORDER BY id;
