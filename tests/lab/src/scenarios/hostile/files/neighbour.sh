# What an escape would show on: a neighbour with a home, a crontab and databases; things of root's; and
# programs with rights of their own. All of it beside the hostile account, and none of it the account's.
umask 022
useradd --create-home --home-dir /home/neighbour --shell /bin/bash neighbour
chmod 0700 /home/neighbour
install -d -m 0755 /etc/ferry-canary /home/neighbour/public
install -d -m 0700 /root/canary /home/neighbour/Maildir /home/neighbour/Maildir/new
for secret in /home/neighbour /etc/ferry-canary /root/canary; do
    (umask 077; echo "canary-secret of $secret" > "$secret/secret")
done
echo '<p>The neighbour</p>' > /home/neighbour/public/index.html
chown -R neighbour:neighbour /home/neighbour
# It gets another name in the hostile home, which changes how many it has, and nothing else.
echo 'canary-secret with two names' > /home/spare
chown neighbour:neighbour /home/spare
chmod 0640 /home/spare
setfattr -n user.mark -v kept /home/neighbour/secret
setfacl -m u:daemon:r-- /home/neighbour/secret
touch -d '2001-02-03 04:05:06.789' /home/neighbour/secret /etc/ferry-canary/secret /root/canary/secret
cp /bin/true /usr/local/bin/canary-setuid
chmod 4755 /usr/local/bin/canary-setuid
cp /bin/true /usr/local/bin/canary-capable
setfattr -n security.capability -v 0x0100000200200000000000000000000000000000 /usr/local/bin/canary-capable
echo '0 3 1 1 * true' | crontab -u neighbour -
mariadb -e "CREATE DATABASE neighbour;
    CREATE USER neighbour@localhost IDENTIFIED BY 'neighbour-password';
    GRANT ALL ON neighbour.* TO neighbour@localhost;
    CREATE TABLE neighbour.t (a INT PRIMARY KEY, b TEXT);
    INSERT INTO neighbour.t VALUES (1, 'canary-secret in MariaDB')"
cd /
runuser -u postgres -- psql -qv ON_ERROR_STOP=1 \
    -c "CREATE ROLE neighbour LOGIN PASSWORD 'neighbour-password'" -c 'CREATE DATABASE neighbour OWNER neighbour'
runuser -u postgres -- psql -qv ON_ERROR_STOP=1 -d neighbour \
    -c 'REVOKE ALL ON DATABASE neighbour FROM PUBLIC' -c 'CREATE TABLE t (a int PRIMARY KEY, b text)' \
    -c "INSERT INTO t VALUES (1, 'canary-secret in PostgreSQL')" -c 'ALTER TABLE t OWNER TO neighbour'
