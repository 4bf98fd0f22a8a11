-- All slots, by number: who has each, whether the lease has ended, and by how many they are shared.
SELECT slot, owner, expires_at <= CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER), 1
FROM outbox_slots
ORDER BY slot;
