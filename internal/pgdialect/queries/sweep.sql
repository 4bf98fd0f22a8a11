-- What is needed of the rows above $1 and up to $2 to tell whether they are known: by a range of the primary key and nothing
-- else to choose a plan by.
--
-- The upper bound is a comparison of rows, since in a table that was never analyzed PostgreSQL takes a range with two plain
-- bounds for 0.5 % of it, and so reads and sorts all of the range.
--
-- The last condition is always true, and nothing is counted. It makes a plan without the values of the parameters look dear,
-- so that PostgreSQL does not keep one: made while the table was empty, it would go on reading and sorting the whole table
-- when that has a million rows. That takes 100 times as long as a read, which takes 0.1 ms longer for being planned. And
-- lastval, which is not called either, must not run in parallel workers, so none is started: that takes longer than a read.
SELECT id, slot, key, topic, retries::bigint, available_at
FROM (
    SELECT *
    FROM outbox_messages
    WHERE id > $1::bigint AND (id, id) <= ($2::bigint, $2::bigint)
    ORDER BY id
    LIMIT $3::bigint
) m
WHERE $3::bigint IS NOT NULL OR (SELECT count(*) FROM generate_series(1, 7000000)) > lastval();
