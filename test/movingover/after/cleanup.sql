-- docs:begin cleanup
DROP TABLE watermill_forwarder_topic, watermill_offsets_forwarder_topic; -- and the trigger with them
DROP FUNCTION redirect_to_outbox;
-- docs:end cleanup
