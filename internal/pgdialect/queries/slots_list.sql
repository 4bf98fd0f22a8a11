-- All slots, by number: who has each, whether the lease has ended, and how many instances there are to share them.
SELECT slot, owner, expires_at <= clock_timestamp(), (
    SELECT count(*)
    FROM outbox_relays
    WHERE expires_at > clock_timestamp()
)
FROM outbox_slots
ORDER BY slot;
