-- Before the reads of a transaction. Where many rows have come since the statistics were made, or were about to be committed
-- then, PostgreSQL expects few, and would rather read and sort all of them than go along the index as far as LIMIT says. And
-- that is so dear by these statistics that it would compile the statement first, or ask parallel workers, which takes longer
-- than a read.
--
-- Without sorts there is one plan, the same for all values, so that a statement that is prepared need not be planned each
-- time: that takes twice as long as to read a message.
--
-- It locks no relation. The reads lock the table, and what asks for the sequence comes after them: the order of INSERT, TRUNCATE
-- and DROP, who would wait for each other otherwise.
SELECT set_config('enable_sort', 'off', true), set_config('jit', 'off', true),
       set_config('max_parallel_workers_per_gather', '0', true), set_config('plan_cache_mode', 'force_generic_plan', true);
