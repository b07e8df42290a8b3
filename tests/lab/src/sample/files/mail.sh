# The mailboxes: served by Dovecot through a passwd-file, filled by Postfix's virtual agent.
uid=$(id -u demo) gid=$(id -g demo)
for mailbox in info sales; do
    install -d -o demo -g demo -m 0700 /home/demo/mail/$mailbox
    hash=$(doveadm pw -s SHA512-CRYPT -p "sample-$mailbox-password")
    echo "$mailbox@demo.example:$hash:$uid:$gid::/home/demo::userdb_mail=maildir:/home/demo/mail/$mailbox"
done >> /etc/dovecot/hosted-users
chown root:dovecot /etc/dovecot/hosted-users
chmod 0640 /etc/dovecot/hosted-users

echo 'demo.example hosted' >> /etc/postfix/hosted-domains
for mailbox in info sales; do
    echo "$mailbox@demo.example demo/mail/$mailbox/" >> /etc/postfix/hosted-mailboxes
    echo "$mailbox@demo.example $uid" >> /etc/postfix/hosted-owners
    echo "$mailbox@demo.example $gid" >> /etc/postfix/hosted-groups
done
for table in domains mailboxes owners groups; do postmap hash:/etc/postfix/hosted-$table; done
postconf -e virtual_mailbox_base=/home \
    virtual_mailbox_domains=hash:/etc/postfix/hosted-domains \
    virtual_mailbox_maps=hash:/etc/postfix/hosted-mailboxes \
    virtual_uid_maps=hash:/etc/postfix/hosted-owners \
    virtual_gid_maps=hash:/etc/postfix/hosted-groups
systemctl restart postfix dovecot
