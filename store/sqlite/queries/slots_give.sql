-- Gives up those slots of ?1 that are in the JSON array ?2.
UPDATE outbox_slots
SET owner = '', expires_at = 0
WHERE owner = ?1 AND slot IN (SELECT value FROM json_each(?2));
