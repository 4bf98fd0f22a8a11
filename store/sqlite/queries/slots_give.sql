UPDATE outbox_slots
SET owner = '', expires_at = 0
WHERE owner = ?1;
