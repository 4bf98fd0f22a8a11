-- Before the reads of a transaction: the last value of the sequence, and which server and history this is, as holders tells.
--
-- The settings are for how PostgreSQL reads. Where many rows have come since the statistics were made, or were about to be
-- committed then, it expects few, and would rather read and sort all of them than go along the index as far as LIMIT says. And
-- that is so dear by these statistics that it would compile the statement first, or ask parallel workers, which takes longer
-- than a read. Without sorts there is one plan, the same for all values, so that a statement that is prepared need not be
-- planned each time: that takes twice as long as the read of a message.
SELECT last_value,
       CASE WHEN pg_is_in_recovery() THEN '' ELSE
           pg_catalog.concat_ws('/', left(pg_walfile_name(pg_current_wal_lsn()), 8),
                                tableoid, pg_relation_filenode(tableoid::regclass))
       END,
       pg_catalog.concat_ws('/', extract(epoch FROM pg_postmaster_start_time()),
                            extract(epoch FROM pg_stat_get_bgwriter_stat_reset_time())),
       set_config('enable_sort', 'off', true), set_config('jit', 'off', true),
       set_config('max_parallel_workers_per_gather', '0', true), set_config('plan_cache_mode', 'force_generic_plan', true)
FROM outbox_messages_id_seq;
