-- Deletes rows by id and uuid. An id alone would not do: after a restore it may belong to another message.
DELETE FROM outbox_messages m
USING unnest($1::bigint[], $2::text[]) AS done (id, uuid)
WHERE m.id = done.id AND m.uuid = done.uuid;
