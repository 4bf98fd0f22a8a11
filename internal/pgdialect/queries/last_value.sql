-- The last value that the sequence has given: nobody has committed an id above it, so where all up to it have been read there
-- is nothing to read. While the sequence is written to the log it is too high, which costs a read that shows nothing.
SELECT last_value FROM outbox_messages_id_seq;
