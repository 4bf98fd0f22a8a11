-- Tells what is wrong with the ids of the table $1 and their sequence, which should be $2, if anything is: late commits are found by ids that come one by one.
SELECT CASE
           WHEN a.attidentity <> 'a' THEN 'the column is not GENERATED ALWAYS AS IDENTITY'
           WHEN s.seqcache <> 1 OR s.seqincrement <> 1 OR s.seqcycle
               THEN pg_catalog.format('its sequence has CACHE %s, INCREMENT BY %s%s', s.seqcache, s.seqincrement,
                                      CASE WHEN s.seqcycle THEN ', CYCLE' END)
           WHEN s.seqrelid IS DISTINCT FROM to_regclass($2::text)::oid
               THEN pg_catalog.format('its sequence is %s, not %s', s.seqrelid::regclass, $2::text)
           ELSE ''
       END
FROM pg_attribute a
LEFT JOIN pg_sequence s ON s.seqrelid = pg_get_serial_sequence($1::text, 'id')::regclass::oid
WHERE a.attrelid = $1::text::regclass::oid AND a.attname = 'id';
