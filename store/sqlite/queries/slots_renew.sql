-- Renews those slots in the JSON array ?3 that ?1 still owns: while nobody took one over, it may be late.
UPDATE outbox_slots
SET expires_at = CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) + ?2
WHERE owner = ?1 AND slot IN (SELECT value FROM json_each(?3))
RETURNING slot, CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER);
