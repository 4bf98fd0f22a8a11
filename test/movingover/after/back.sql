-- docs:begin back
SET LOCAL lock_timeout = '1s';
DROP TRIGGER redirect_to_outbox ON watermill_forwarder_topic;
DROP FUNCTION redirect_to_outbox;
-- docs:end back
