-- Tells that $1 is there, for $2 milliseconds. Whoever has been away for an hour is forgotten, and where somebody else is about
-- to forget him, or he to come back, nobody waits.
WITH gone AS (
    DELETE FROM outbox_relays
    WHERE name IN (
        SELECT name
        FROM outbox_relays
        WHERE expires_at < clock_timestamp() - interval '1 hour' AND name <> $1::text
        FOR UPDATE SKIP LOCKED
    )
)
INSERT INTO outbox_relays (name, expires_at)
VALUES ($1::text, clock_timestamp() + $2::bigint::float8 * interval '1 millisecond')
ON CONFLICT (name) DO UPDATE SET expires_at = excluded.expires_at;
