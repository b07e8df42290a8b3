# What must be the same at both ends: what the owner planted, told by the usual tools and by name.
export LC_ALL=C
cd /home/hostile
find hostile/names hostile/way hostile/read-me hostile/root hostile/climbing hostile/self hostile/loop hostile/setuid \
    hostile/setgid hostile/gate mail/trap mail/info/.Archive .my.cnf .psqlrc .forward .procmailrc .profile hooks site/public \
    ! -type d -printf 'file %p|%y|%m|%u|%g|%s|%T@|%l\0' | sort -z | tr '\0\n' '\n~'
for spool in /var/spool/cron/crontabs/hostile /var/spool/cron/crontabs/.ferry-aside-hostile; do
    if [ -e $spool ]; then echo "crontab $(grep -v '^# ' $spool | sha256sum)"; fi
done
mariadb -N --default-character-set=utf8mb4 -e "SELECT 'row', id, HEX(text), HEX(word) FROM hostile_shop.hostile ORDER BY id;
    SELECT 'table', HEX(TABLE_NAME), HEX(TABLE_COMMENT) FROM information_schema.TABLES
        WHERE TABLE_SCHEMA = 'hostile_shop' AND TABLE_TYPE = 'BASE TABLE' ORDER BY 2;
    SELECT 'column', HEX(COLUMN_NAME), HEX(COLUMN_COMMENT), HEX(COLUMN_DEFAULT) FROM information_schema.COLUMNS
        WHERE TABLE_SCHEMA = 'hostile_shop' AND TABLE_NAME LIKE 'hostile%' ORDER BY 2;
    SELECT 'routine', ROUTINE_NAME, DEFINER, HEX(ROUTINE_DEFINITION), HEX(ROUTINE_COMMENT)
        FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA = 'hostile_shop' ORDER BY 2;
    SELECT 'trigger', TRIGGER_NAME, DEFINER, HEX(ACTION_STATEMENT) FROM information_schema.TRIGGERS
        WHERE TRIGGER_SCHEMA = 'hostile_shop' ORDER BY 2;
    SELECT 'event', EVENT_NAME, DEFINER, HEX(EVENT_DEFINITION), HEX(EVENT_COMMENT) FROM information_schema.EVENTS
        WHERE EVENT_SCHEMA = 'hostile_shop' ORDER BY 2;
    SELECT 'view', TABLE_NAME, DEFINER FROM information_schema.VIEWS WHERE TABLE_SCHEMA = 'hostile_shop' ORDER BY 2"
cd /
runuser -u postgres -- psql -At -d hostile_app \
    -c "SELECT 'row', id, encode(convert_to(text, 'UTF8'), 'hex'), encode(convert_to(word, 'UTF8'), 'hex') FROM hostile ORDER BY id" \
    -c "SELECT 'function', proname, pg_get_userbyid(proowner), encode(convert_to(prosrc, 'UTF8'), 'hex')
        FROM pg_proc WHERE pronamespace = 'public'::regnamespace ORDER BY 2" \
    -c "SELECT 'relation', encode(convert_to(relname, 'UTF8'), 'hex'), pg_get_userbyid(relowner),
        encode(convert_to(coalesce(obj_description(oid, 'pg_class'), ''), 'UTF8'), 'hex')
        FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 2" \
    -c "SELECT 'attribute', encode(convert_to(attname, 'UTF8'), 'hex') FROM pg_attribute JOIN pg_class c ON c.oid = attrelid
        WHERE relnamespace = 'public'::regnamespace AND attnum > 0 ORDER BY 2"
