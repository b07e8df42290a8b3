# All that is not the hostile account's and that it may want: bit for bit, times included, by the usual
# tools. What a program left that only an escape would have run shows as well.
export LC_ALL=C
cd /
for root in /home/neighbour /etc/ferry-canary /root/canary /usr/local/bin; do
    find "$root" -printf '%p|%y|%m|%U|%G|%n|%s|%T@|%C@|%l\n' | sort
    find "$root" -type f -print0 | sort -z | xargs -0 sha256sum
    getfattr -R -h -d -m - -e hex --absolute-names "$root"
    getfacl -R -n --absolute-names "$root"
done
find /home/spare -printf 'spare %p|%y|%m|%U|%G|%s|%T@\n'
sha256sum /home/spare
find /etc/shadow /etc/passwd /etc/sudoers /etc/crontab -printf 'system %p|%y|%m|%U|%G|%n|%l\n'
ls -A /etc/sudoers.d /etc/cron.d /etc/cron.daily /etc/profile.d /etc/ld.so.preload 2>&1 | sed 's/^/system /'
crontab -u neighbour -l
getent passwd neighbour root
getent shadow neighbour root
id neighbour
mariadb -N -e "SELECT * FROM mysql.global_priv WHERE User IN ('neighbour', 'root', '') ORDER BY 1, 2;
    SELECT * FROM mysql.db WHERE Db = 'neighbour' OR User = 'neighbour' ORDER BY 1, 2, 3;
    SELECT @@general_log, @@local_infile, @@secure_file_priv, @@event_scheduler"
mariadb-dump --skip-dump-date --routines --triggers --events neighbour | sha256sum
runuser -u postgres -- psql -Atc "SELECT rolname, rolsuper, rolcreaterole, rolpassword FROM pg_authid
        WHERE rolname IN ('neighbour', 'postgres') ORDER BY 1" \
    -c "SELECT datname, datacl, datconnlimit FROM pg_database WHERE datname IN ('neighbour', 'postgres', 'template1') ORDER BY 1"
runuser -u postgres -- pg_dump neighbour | grep -vE '^\\(un)?restrict ' | sha256sum
# Programs with rights of their own, and devices, wherever they are but below the account's home.
for tree in / /home; do
    find "$tree" -xdev -path /home/hostile -prune -o \
        \( -type b -o -type c -o -type f -perm /6000 \) -printf 'right %p|%y|%m|%U|%G|%C@\n' | sort
    find "$tree" -xdev -path /home/hostile -prune -o -type f -print0 |
        xargs -0 getfattr -h -n security.capability -e hex --absolute-names 2>/dev/null || :
done
find /home /tmp /var/tmp /dev/shm /run /root /etc /usr /opt -xdev -name 'ran-*' -printf 'ran %p|%U\n' | sort
