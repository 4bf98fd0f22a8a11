-- Deletes the rows that a JSON array of [id, uuid, ...] names. An id alone would not do: after a restore it may belong to
-- another message. A uuid that is null cannot be written in JSON, and is not compared.
DELETE FROM outbox_messages
WHERE id IN (
    SELECT m.id
    FROM json_each(?1) j CROSS JOIN outbox_messages m ON m.id = j.value ->> 0
    WHERE CAST(m.uuid AS TEXT) = j.value ->> 1 OR j.value ->> 1 IS NULL
);
