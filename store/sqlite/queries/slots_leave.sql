-- Gives up all slots of ?1.
UPDATE outbox_slots
SET owner = '', expires_at = 0
WHERE owner = ?1;
