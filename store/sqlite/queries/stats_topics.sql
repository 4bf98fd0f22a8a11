SELECT topic, count(*)
FROM outbox_messages
GROUP BY topic;
