CREATE TABLE hostile (id serial PRIMARY KEY, text text, word text DEFAULT '
\! touch /run/lock/ran-pg-default
');
INSERT INTO hostile (text) VALUES (E'\n\\.\n\\! touch /run/lock/ran-pg-row\n'), (E'\\.'), ('
\! touch /run/lock/ran-pg-row
\copy hostile from program ''touch /run/lock/ran-pg-copy''
\o |touch /run/lock/ran-pg-pipe
'), ('$$; COPY hostile FROM PROGRAM ''touch /run/lock/ran-pg-program''; $$');
COMMENT ON TABLE hostile IS '
\! touch /run/lock/ran-pg-comment
';
CREATE TABLE "new
\! touch /run/lock/ran-pg-table
" (a int, "b
\! touch /run/lock/ran-pg-column" int);
COMMENT ON TABLE "new
\! touch /run/lock/ran-pg-table
" IS 'named so';
CREATE FUNCTION hostile_function() RETURNS text LANGUAGE plpgsql AS $body$
BEGIN
    /*
\! touch /run/lock/ran-pg-function
\i /root/canary/secret
    */
    RETURN $$
\! touch /run/lock/ran-pg-function
$$;
END
$body$;
CREATE FUNCTION hostile_trigger() RETURNS trigger LANGUAGE plpgsql AS '
BEGIN
    NEW.word := current_user || '' \! touch /run/lock/ran-pg-trigger'';
    RETURN NEW;
END';
CREATE TRIGGER hostile_trigger BEFORE INSERT ON hostile FOR EACH ROW EXECUTE FUNCTION hostile_trigger();
CREATE VIEW hostile_view AS SELECT hostile_function() AS "a
\! touch /run/lock/ran-pg-view";
