-- All slots, by number: who has each, and whether the lease has ended.
SELECT slot, owner, expires_at <= CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)
FROM outbox_slots
ORDER BY slot;
