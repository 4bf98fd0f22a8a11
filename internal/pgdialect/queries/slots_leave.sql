-- Gives up all slots of $1.
UPDATE outbox_slots
SET owner = '', expires_at = '-infinity'
WHERE slot IN (
    SELECT slot
    FROM outbox_slots
    WHERE owner = $1::text
    ORDER BY slot
    FOR UPDATE
);
