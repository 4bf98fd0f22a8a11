-- All slots, by number: who has each, and whether the lease has ended.
SELECT slot, owner, expires_at <= clock_timestamp()
FROM outbox_slots
ORDER BY slot;
