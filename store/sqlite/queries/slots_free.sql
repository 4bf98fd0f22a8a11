-- The number of slots that ?1 could take, without a write, and of all.
SELECT count(*) FILTER (
           WHERE owner IN ('', ?1) OR expires_at <= CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)
       ),
       count(*)
FROM outbox_slots;
