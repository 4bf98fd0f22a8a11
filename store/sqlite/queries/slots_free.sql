-- The number of slots that ?1 could take, without a write.
SELECT count(*)
FROM outbox_slots
WHERE owner IN ('', ?1) OR expires_at <= CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER);
