-- docs:begin drained
-- Whether no more messages with an envelope come into the old topic, and whether the old forwarder is through with it:
-- its newest message is acknowledged.
SELECT EXISTS (
    SELECT FROM pg_trigger
    WHERE tgrelid = to_regclass('watermill_forwarder_topic') AND tgname = 'redirect_to_outbox'
) AS redirected, coalesce((
    SELECT (m.transaction_id, m."offset") <= (o.last_processed_transaction_id, o.offset_acked)
    FROM watermill_forwarder_topic AS m
    LEFT JOIN watermill_offsets_forwarder_topic AS o ON o.consumer_group = ''
    ORDER BY m.transaction_id DESC, m."offset" DESC LIMIT 1
), NOT EXISTS (SELECT FROM watermill_forwarder_topic)) AS drained;
-- docs:end drained
