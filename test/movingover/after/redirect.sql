-- docs:begin redirect
-- It waits until the transactions that have published have ended, and new ones wait for it: give up rather than hold
-- them up for long, and try again.
SET LOCAL lock_timeout = '1s';

CREATE FUNCTION redirect_to_outbox() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF coalesce(NEW.payload->>'destination_topic', '') = '' THEN
        RETURN NEW; -- it has no envelope: it stays what it was
    END IF;
    INSERT INTO outbox_messages (uuid, topic, key, payload, headers) VALUES (
        coalesce(nullif(NEW.payload->>'uuid', ''), gen_random_uuid()::text),
        NEW.payload->>'destination_topic',
        coalesce(NEW.payload->'metadata'->>'customer_id', ''), -- the key: what partitionKey returns
        decode(coalesce(NEW.payload->>'payload', ''), 'base64'),
        coalesce(NEW.payload->>'metadata', '{}')::json);
    RETURN NULL; -- not into this table
END $$;

CREATE TRIGGER redirect_to_outbox BEFORE INSERT ON watermill_forwarder_topic
    FOR EACH ROW EXECUTE FUNCTION redirect_to_outbox();
-- docs:end redirect
