-- Gives up those slots of $1 that are in $2.
UPDATE outbox_slots
SET owner = '', expires_at = '-infinity'
WHERE slot IN (
    SELECT slot
    FROM outbox_slots
    WHERE owner = $1::text AND slot = ANY ($2::bigint[])
    ORDER BY slot
    FOR UPDATE
);
