-- Takes those slots in the JSON array ?3 that are free for ?1, for ?2 milliseconds. Returns them with the database's time.
UPDATE outbox_slots
SET owner = ?1, expires_at = CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) + ?2
WHERE slot IN (SELECT value FROM json_each(?3)) AND
      (owner IN ('', ?1) OR expires_at <= CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER))
RETURNING slot, CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER);
