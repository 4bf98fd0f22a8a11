-- The last value that the sequence has given; who holds its lock, and so may commit an id up to that one later, or null for
-- nobody; whether that is a prepared transaction; which history of which server and sequence this is, which no restore,
-- promotion or TRUNCATE ... RESTART IDENTITY goes on with; since when the server runs and has not crashed, which begins the
-- statistics anew; and whether it is a standby. (The process tells transactions apart whose names a crash has given again.)
SELECT CASE WHEN s.is_called THEN s.last_value ELSE s.last_value - 1 END,
       l.virtualtransaction || coalesce('/' || l.pid::text, ''), l.pid IS NULL,
       (SELECT system_identifier::text FROM pg_control_system()),
       CASE WHEN pg_is_in_recovery() THEN '' ELSE
           pg_catalog.concat_ws('/', left(pg_walfile_name(pg_current_wal_lsn()), 8),
                                s.tableoid, pg_relation_filenode(s.tableoid::regclass))
       END,
       pg_catalog.concat_ws('/', extract(epoch FROM pg_postmaster_start_time()),
                            extract(epoch FROM pg_stat_get_bgwriter_stat_reset_time())),
       pg_is_in_recovery()
FROM outbox_messages_id_seq s
LEFT JOIN pg_locks l ON l.locktype = 'relation' AND l.mode = 'RowExclusiveLock' AND l.granted AND l.relation = s.tableoid AND
                        l.database = (SELECT oid FROM pg_database WHERE datname = current_database());
