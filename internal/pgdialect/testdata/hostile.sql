-- What somebody may put into a schema of other people's search_path. PostgreSQL takes the operator or function with exactly
-- the types of the arguments, be it of a later schema than pg_catalog, before any to whose types it would have to convert.
DO $do$
DECLARE
    -- Of columns and parameters, and of what comes of them.
    types text[] := '{smallint,integer,bigint,numeric,double precision,text,varchar,name,"\"char\"",boolean,timestamptz,interval,oid,regclass}';
    lefts text;
    rights text;
    operator text;
    signature text;
BEGIN
    FOREACH lefts IN ARRAY types LOOP
        FOREACH rights IN ARRAY types LOOP
            EXECUTE format('CREATE FUNCTION hostile.operator(%s, %s) RETURNS boolean LANGUAGE plpgsql AS '
                '$$BEGIN RAISE ''hostile operator of %1$s and %2$s''; END$$', lefts, rights);
            FOREACH operator IN ARRAY '{+,-,*,/,>>,&,||,=,<>,<,<=,>,>=}'::text[] LOOP
                EXECUTE format('CREATE OPERATOR hostile.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = hostile.operator)',
                    operator, lefts, rights);
            END LOOP;
        END LOOP;
    END LOOP;

    -- Each function with another type for one of its arguments, and those that take any number of any types by hand.
    FOR signature IN
        SELECT DISTINCT p.proname || '(' || string_agg(
                   CASE n WHEN position THEN other ELSE format_type(p.proargtypes[n - 1], NULL) END, ', ' ORDER BY n) || ')'
        FROM pg_proc p, unnest(types || '{"bigint[]","text[]"}') other, generate_series(1, p.pronargs) position,
             generate_series(1, p.pronargs) n
        WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.proname = ANY ('{functions}')
        GROUP BY p.oid, p.proname, other, position
        HAVING bool_and(n = position OR p.proargtypes[n - 1] NOT IN (SELECT oid FROM pg_type WHERE typtype = 'p'))
        UNION
        VALUES ('concat_ws(text, bigint, text, oid, oid)'), ('concat_ws(text, numeric, numeric)'),
               ('concat_ws(text, double precision, double precision)'),
               ('format(text, bigint, bigint, text)'), ('format(text, regclass, text)')
    LOOP
        EXECUTE format('CREATE OR REPLACE FUNCTION hostile.%s RETURNS boolean LANGUAGE plpgsql AS '
            '$$BEGIN RAISE ''hostile %%'', %L; END$$', signature, signature);
    END LOOP;
END
$do$;
