# Takes away what the scenario made by hand, wherever it stopped.
cd /
# A process that an attacker has left may start others: again until none is there.
for user in hostile neighbour; do
    while pkill -KILL -u $user 2>/dev/null; do :; done
done
rm -f /etc/ferry/accounts.d/hostile.toml /etc/ferry/accounts.d/bad-*.toml /etc/ferry/inventory.d/bad-inventory
rm -f /etc/nginx/sites-enabled/hostile.conf /etc/php/*/fpm/pool.d/hostile.conf
systemctl reload nginx || :
for unit in $(systemctl list-units --plain --no-legend 'php*-fpm.service' | cut -d' ' -f1); do
    systemctl restart "$unit"
done
for user in hostile neighbour; do
    crontab -u $user -r 2>/dev/null || :
    if getent passwd $user >/dev/null; then userdel --remove $user 2>/dev/null; fi
    rm -rf /home/$user
done
if getent group hostile-team >/dev/null; then groupdel hostile-team; fi
rm -rf /etc/ferry-canary /root/canary /home/spare /usr/local/bin/canary-* /usr/local/lib/hostile-race
find /tmp /var/tmp /dev/shm /run /root /etc -xdev -name 'ran-*' -delete
for file in domains mailboxes owners groups; do
    if [ -e /etc/postfix/hosted-$file ]; then
        sed -i '/hostile/d' /etc/postfix/hosted-$file
        postmap hash:/etc/postfix/hosted-$file
    fi
done
if [ -e /etc/dovecot/hosted-users ]; then sed -i '/hostile/d' /etc/dovecot/hosted-users; fi
mariadb -e "DROP DATABASE IF EXISTS neighbour; DROP USER IF EXISTS neighbour@localhost;
    DROP DATABASE IF EXISTS hostile_shop; DROP USER IF EXISTS hostile_shop@localhost"
for name in neighbour hostile_app; do
    runuser -u postgres -- psql -q -c "DROP DATABASE IF EXISTS $name WITH (FORCE)" -c "DROP ROLE IF EXISTS $name" 2>/dev/null
done
