-- The last value that the sequence has given, and which server and history this is, as holders.sql has them.
SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END,
       CASE WHEN pg_is_in_recovery() THEN '' ELSE
           pg_catalog.concat_ws('/', left(pg_walfile_name(pg_current_wal_lsn()), 8),
                                tableoid, pg_relation_filenode(tableoid::regclass))
       END,
       pg_catalog.concat_ws('/', extract(epoch FROM pg_postmaster_start_time()),
                            extract(epoch FROM pg_stat_get_bgwriter_stat_reset_time()))
FROM outbox_messages_id_seq;
