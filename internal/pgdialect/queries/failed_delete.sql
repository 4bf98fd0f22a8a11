-- For the last condition see sweep.sql.
DELETE FROM outbox_archive
WHERE status = 'failed' AND id = ANY ($1::bigint[]) AND
      ($1::bigint[] IS NOT NULL OR (SELECT count(*) FROM generate_series(1, 7000000)) > lastval());
