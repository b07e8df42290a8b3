# A hosting server as somebody set it up, from Debian's packages, without Ferry in mind.
useradd --create-home --shell /bin/bash paula
useradd --create-home --shell /bin/bash robin
chmod 0711 /home/paula /home/robin

# paula: a site in PHP with both kinds of databases.
install -d -o paula -g paula /home/paula/public_html
cat > /home/paula/public_html/wp-config.php <<'END'
<?php
define( 'DB_NAME', 'paula_wp' );
define( 'DB_USER', 'paula_wp' );
define( 'DB_PASSWORD', 'sample-wp-password' );
define( 'DB_HOST', 'localhost' );
END
cat > /home/paula/public_html/index.php <<'END'
<?php
require __DIR__ . '/wp-config.php';
$posts = new mysqli(DB_HOST, DB_USER, DB_PASSWORD, DB_NAME);
echo $posts->query('SELECT title FROM posts')->fetch_row()[0], ' and ';
$stats = pg_connect('host=127.0.0.1 dbname=paula_stats user=paula password=sample-stats-password');
echo pg_fetch_result(pg_query($stats, 'SELECT hits FROM stats'), 0, 0), ' hits';
END
chown paula:paula /home/paula/public_html/*
chmod 0600 /home/paula/public_html/wp-config.php
cat > /etc/php/8.2/fpm/pool.d/paula.conf <<'END'
[paula]
user = paula
group = paula
listen = /run/php/$pool.sock
listen.owner = www-data
listen.group = www-data
pm = dynamic
pm.max_children = 4
pm.start_servers = 1
pm.min_spare_servers = 1
pm.max_spare_servers = 2
END
cat > /etc/nginx/sites-available/paula <<'END'
server {
    listen 80;
    listen [::]:80;
    listen 443 ssl;
    server_name paula.example www.paula.example;
    ssl_certificate /etc/ssl/certs/ssl-cert-snakeoil.pem;
    ssl_certificate_key /etc/ssl/private/ssl-cert-snakeoil.key;
    root /home/paula/public_html;
    index index.php index.html;
    location / {
        try_files $uri $uri/ /index.php?$args;
    }
    location ~ \.php$ {
        include snippets/fastcgi-php.conf;
        fastcgi_pass unix:/run/php/paula.sock;
    }
}
END
ln -s /etc/nginx/sites-available/paula /etc/nginx/sites-enabled/paula
make-ssl-cert generate-default-snakeoil

mariadb <<'END'
CREATE DATABASE paula_wp;
CREATE USER paula_wp@localhost IDENTIFIED BY 'sample-wp-password';
GRANT ALL ON `paula\_wp`.* TO paula_wp@localhost;
CREATE TABLE paula_wp.posts (id INT PRIMARY KEY, title TEXT);
INSERT INTO paula_wp.posts VALUES (1, 'a post by hand');
CREATE DATABASE leftover;
END
cd /tmp
runuser -u postgres -- psql -q -v ON_ERROR_STOP=1 <<'END'
CREATE ROLE paula LOGIN PASSWORD 'sample-stats-password';
CREATE DATABASE paula_stats OWNER paula;
\connect paula_stats
SET ROLE paula;
CREATE TABLE stats (hits int PRIMARY KEY);
INSERT INTO stats VALUES (42);
END

# Mail: Postfix's virtual mailboxes, and Dovecot with a passwd-file.
install -d -o paula -g paula -m 0700 /home/paula/boxes /home/paula/boxes/info
uid=$(id -u paula) gid=$(id -g paula)
echo 'info@paula.example paula/boxes/info/' > /etc/postfix/vmailbox
postmap hash:/etc/postfix/vmailbox
postconf -e virtual_mailbox_domains=paula.example virtual_mailbox_base=/home \
    virtual_mailbox_maps=hash:/etc/postfix/vmailbox \
    virtual_uid_maps=static:$uid virtual_gid_maps=static:$gid
cat > /etc/dovecot/conf.d/auth-by-hand.conf <<'END'
passdb {
  driver = passwd-file
  args = scheme=SHA512-CRYPT username_format=%u /etc/dovecot/users
}
userdb {
  driver = passwd-file
  args = username_format=%u /etc/dovecot/users
}
END
hash=$(doveadm pw -s SHA512-CRYPT -p sample-info-password)
echo "info@paula.example:$hash:$uid:$gid::/home/paula::userdb_mail=maildir:/home/paula/boxes/info" > /etc/dovecot/users
chown root:dovecot /etc/dovecot/users
chmod 0640 /etc/dovecot/users

# What runs by itself.
echo '* * * * * date >> /home/paula/cron.log' | crontab -u paula -
cat > /etc/systemd/system/paula-worker.service <<'END'
[Service]
User=paula
ExecStart=/bin/sleep infinity
[Install]
WantedBy=multi-user.target
END
systemctl daemon-reload
systemctl enable --now paula-worker.service

# robin: a static site where Debian's web servers look for it, and what an Apache left behind.
install -d -o robin -g robin /var/www/site2
echo 'a page by hand' > /var/www/site2/index.html
chown robin:robin /var/www/site2/index.html
cat > /etc/nginx/sites-enabled/site2.conf <<'END'
server {
    listen 80;
    server_name site2.example;
    root /var/www/site2;
}
END
install -d /etc/apache2/sites-enabled
echo 'IncludeOptional sites-enabled/*.conf' > /etc/apache2/apache2.conf
cat > /etc/apache2/sites-enabled/old.conf <<'END'
<VirtualHost *:8080>
    ServerName old.example
    DocumentRoot /home/paula/public_html
</VirtualHost>
END

systemctl restart php8.2-fpm nginx postfix dovecot
