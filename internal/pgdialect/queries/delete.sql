-- Deletes rows by id and uuid. An id alone would not do: after a restore it may belong to another message. Arrays of one
-- element are compared because PostgreSQL has no other way to join by them than one by one through the primary key; by
-- equality it reads and hashes a table of 30,000 rows to find 1,000. For the last condition see read.sql.
DELETE FROM outbox_messages m
USING unnest($1::bigint[], $2::text[]) AS done (id, uuid)
WHERE m.id = ANY (ARRAY[done.id]) AND m.uuid = ANY (ARRAY[done.uuid]) AND
      ($1::bigint[] IS NOT NULL OR (SELECT count(*) FROM generate_series(1, 7000000)) > lastval());
