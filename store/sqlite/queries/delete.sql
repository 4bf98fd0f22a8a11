-- Deletes the rows that a JSON object {"id": "uuid"} names. An id alone would not do: after a restore it may belong to
-- another message. A uuid that is null cannot be written in JSON, and is not compared.
DELETE FROM outbox_messages
WHERE id IN (
    SELECT m.id
    FROM json_each(?1) j CROSS JOIN outbox_messages m ON m.id = CAST(j.key AS INTEGER)
    WHERE CAST(m.uuid AS TEXT) = j.value OR j.value IS NULL
);
