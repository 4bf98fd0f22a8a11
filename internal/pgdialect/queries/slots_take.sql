-- Takes those slots of $3 that are free for $1, for $2 milliseconds. Returns them with the database's time. What somebody
-- else is about to take is his.
UPDATE outbox_slots
SET owner = $1::text, expires_at = clock_timestamp() + $2::bigint::float8 * interval '1 millisecond'
WHERE slot IN (
    SELECT slot
    FROM outbox_slots
    WHERE slot = ANY ($3::bigint[]) AND (owner IN ('', $1::text) OR expires_at <= clock_timestamp())
    ORDER BY slot
    FOR UPDATE SKIP LOCKED
)
RETURNING slot, clock_timestamp();
