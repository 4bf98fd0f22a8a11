-- Tells that $1 is still there, for $2 milliseconds more. Who has left does not come back by one that is late.
UPDATE outbox_relays
SET expires_at = clock_timestamp() + $2::bigint::float8 * interval '1 millisecond'
WHERE name = $1::text;
