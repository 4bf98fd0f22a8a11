-- Settings on which it depends what texts and values mean to those who write and read them.
SELECT current_setting('server_encoding'), current_setting('DateStyle'), current_setting('bytea_output');
