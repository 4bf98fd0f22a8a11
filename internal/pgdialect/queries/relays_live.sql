SELECT count(*)
FROM outbox_relays
WHERE expires_at > clock_timestamp();
