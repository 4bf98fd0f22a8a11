-- docs:begin unforwarded
-- What the old forwarder has acknowledged and not forwarded, because it has no envelope.
SELECT "offset", created_at, uuid, payload, metadata FROM watermill_forwarder_topic
WHERE coalesce(payload->>'destination_topic', '') = ''
ORDER BY transaction_id, "offset";
-- docs:end unforwarded
