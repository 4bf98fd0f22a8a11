-- Renews those slots of $3 that $1 still owns: while nobody took one over, it may be late.
UPDATE outbox_slots
SET expires_at = clock_timestamp() + $2::bigint::float8 * interval '1 millisecond'
WHERE slot IN (
    SELECT slot
    FROM outbox_slots
    WHERE owner = $1::text AND slot = ANY ($3::bigint[])
    ORDER BY slot
    FOR UPDATE
)
RETURNING slot, clock_timestamp();
