-- Before the reads of a transaction. Where many rows have come since the statistics were made, or were about to be committed
-- then, PostgreSQL expects few, and would rather read and sort all of them than go along the index as far as LIMIT says. And
-- that is so dear by these statistics that it would compile the statement first.
SELECT set_config('enable_sort', 'off', true), set_config('jit', 'off', true);
