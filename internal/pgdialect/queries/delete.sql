-- Deletes rows by id and uuid. An id alone would not do: after a restore it may belong to another message. Arrays of one
-- element are compared because PostgreSQL has no other way to join by them than one by one through the primary key; by
-- equality it reads and hashes a table of 30,000 rows to find 1,000.
--
-- That id + 0 = id is true of all. PostgreSQL takes it for true of one in 200, and an array that a subquery returns for one
-- of ten elements, and so expects one row here. It would rather go through the whole table, and compare each of its rows with
-- each of these, where it takes the table to be empty: after autovacuum has analyzed it before a large transaction was
-- committed. For the last condition see sweep.sql.
DELETE FROM outbox_messages m
USING (
    SELECT id, uuid FROM unnest((SELECT $1::bigint[]), (SELECT $2::text[])) AS all_done (id, uuid) WHERE id + 0 = id
) done
WHERE m.id = ANY (ARRAY[done.id]) AND m.uuid = ANY (ARRAY[done.uuid]) AND
      ($1::bigint[] IS NOT NULL OR (SELECT count(*) FROM generate_series(1, 7000000)) > lastval());
