DELETE FROM outbox_relays
WHERE name = $1::text;
