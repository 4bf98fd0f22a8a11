-- The rows above $1 and up to $2, by a range of the primary key and nothing else to choose a plan by; of slots that are not
-- in $4 no more than the ids.
--
-- The upper bound is a comparison of rows, since in a table that was never analyzed PostgreSQL takes a range with two plain
-- bounds for 0.5 % of it, and so reads and sorts all of the range.
--
-- The last condition is always true, and nothing is counted. It makes a plan without the values of the parameters look dear,
-- so that PostgreSQL does not keep one: made while the table was empty, it would go on reading and sorting the whole table
-- when that has a million rows. That takes 100 times as long as the read, which takes 0.1 ms longer for being planned. And
-- lastval, which is not called either, must not run in parallel workers, so none is started: that takes longer than a read.
SELECT id, slot,
       CASE WHEN mine THEN uuid ELSE '' END, CASE WHEN mine THEN topic ELSE '' END, CASE WHEN mine THEN key ELSE '' END,
       CASE WHEN mine THEN payload ELSE '' END, CASE WHEN mine THEN headers::text ELSE '{}' END,
       retries::bigint, available_at, CASE WHEN mine THEN last_error ELSE '' END, created_at
FROM (
    SELECT *, $4::bigint >> slot::integer & 1::bigint = 1 AS mine
    FROM outbox_messages
    WHERE id > $1::bigint AND (id, id) <= ($2::bigint, $2::bigint)
    ORDER BY id
    LIMIT $3::bigint
) m
WHERE $3::bigint IS NOT NULL OR (SELECT count(*) FROM generate_series(1, 7000000)) > lastval();
