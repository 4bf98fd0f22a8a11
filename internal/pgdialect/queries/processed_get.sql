-- For the last condition see sweep.sql.
SELECT count(*)
FROM outbox_processed
WHERE consumer_group = $1::text AND message_id = $2::text AND
      ($1::text IS NOT NULL OR (SELECT count(*) FROM generate_series(1, 7000000)) > lastval());
