-- Values that a driver may get as texts, in the manner of these settings.
SELECT timestamptz '2001-02-03 04:05:06+00', '\x00ff'::bytea;
