# What the person who reviews the proposals does about them.
# The certificate goes below the home, for paula's own use.
install -d -o paula -g paula -m 0700 /home/paula/ssl
install -o paula -g paula -m 0644 /etc/ssl/certs/ssl-cert-snakeoil.pem /home/paula/ssl/paula.pem
install -o paula -g paula -m 0600 /etc/ssl/private/ssl-cert-snakeoil.key /home/paula/ssl/paula.key
sed -i -e 's|/etc/ssl/certs/ssl-cert-snakeoil.pem|/home/paula/ssl/paula.pem|' \
    -e 's|/etc/ssl/private/ssl-cert-snakeoil.key|/home/paula/ssl/paula.key|' \
    /etc/nginx/sites-available/paula
# The site of robin's goes below the home.
mv /var/www/site2 /home/robin/site2
sed -i 's|/var/www/site2|/home/robin/site2|' /etc/nginx/sites-enabled/site2.conf
# Nobody misses what the Apache left.
rm -r /etc/apache2
systemctl reload nginx
