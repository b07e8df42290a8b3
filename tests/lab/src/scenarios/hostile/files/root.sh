# What a provider has set up for the account beside the sample's, and a file of a neighbour's that may get
# another name.
cat >> /etc/ferry/accounts.d/hostile.toml <<'DEFINITION'

[hooks]
before_fence = "hooks/before"
after_open = "hooks/after"
DEFINITION
sed -i 's/mailboxes = .*/mailboxes = ["info", "sales", "trap"]/' /etc/ferry/accounts.d/hostile.toml
uid=$(id -u hostile) gid=$(id -g hostile)
echo "trap@hostile.example:{PLAIN}trap:$uid:$gid::/home/hostile::userdb_mail=maildir:/home/hostile/mail/trap" \
    >> /etc/dovecot/hosted-users
echo 'trap@hostile.example hostile/mail/trap/' >> /etc/postfix/hosted-mailboxes
echo "trap@hostile.example $uid" >> /etc/postfix/hosted-owners
echo "trap@hostile.example $gid" >> /etc/postfix/hosted-groups
for table in mailboxes owners groups; do postmap hash:/etc/postfix/hosted-$table; done
