-- Fails where a table or a column that this release needs is missing. Returns nothing.
SELECT m.id, m.slot, m.uuid, m.topic, m.key, m.payload, m.headers, m.retries, m.available_at, m.last_error, m.created_at,
       a.id, a.uuid, a.topic, a.key, a.payload, a.headers, a.retries, a.available_at, a.last_error, a.created_at,
       a.status, a.processed_at,
       s.slot, s.owner, s.expires_at,
       r.name, r.expires_at,
       p.consumer_group, p.message_id, p.processed_at, p.metadata
FROM outbox_messages m, outbox_archive a, outbox_slots s, outbox_relays r, outbox_processed p
LIMIT 0;
