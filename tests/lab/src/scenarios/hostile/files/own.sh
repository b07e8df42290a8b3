# What the account's owner can plant alone. Runs as the account's user.
umask 022
cd /home/hostile
mkdir -p hooks hostile/names hostile/race hostile/gone
cd hostile

# Ways out, and a place that will be one after the move, and the other way round.
ln -s /home/neighbour way
echo mine > gone/secret
ln -s /home/neighbour/secret read-me
ln -s /root/canary root
ln -s ../../../../../../../etc/shadow climbing
ln -s /proc/self/root self
ln -s loop loop

# Programs with the account's own rights, which may move.
cp /bin/true setuid && chmod 4755 setuid
cp /bin/true setgid && chmod 2755 setgid

# Names.
cd names
touch -- '..hidden' '.. ' '...' '..%2f..%2fetc' $'..\nroot' $'a\nb' $'\e[2Jcleared' -rf ' ' '*' '?' '~root' \
    '$(touch ran-name)' '`touch ran-name`' ';touch ran-name' '|touch ran-name' $'quote\'"' \
    'back\..\slash' $'\xff\xfe..' $'\r' 'a:b' '%s%n' "$(printf '.%.0s' $(seq 255))"
mkdir '..; rm -rf ..' '$HOME'
touch '..; rm -rf ../inside' '$HOME/inside'

# Files that programs read in a home, should anybody run them with it.
cd /home/hostile
printf '[client]\ninit-command="SELECT 1 INTO OUTFILE \\"/run/lock/ran-my-cnf\\""\n[mysql]\npager=touch /run/lock/ran-pager\n' > .my.cnf
cp .my.cnf .mylogin.cnf
echo '\! touch /run/lock/ran-psqlrc' > .psqlrc
printf '[localhost]\nhost=192.0.2.1\n' > .pg_service.conf
echo '"|touch /run/lock/ran-forward"' > .forward
printf ':0\n| touch /run/lock/ran-procmail\n' > .procmailrc
for file in .profile .bash_profile .bashrc .bash_logout .xprofile; do echo 'touch /run/lock/ran-shell' > $file; done
echo 'touch /run/lock/ran-ssh-rc' > .ssh/rc

# Mailboxes that lead to others' mail.
ln -s /home/neighbour/Maildir mail/trap
ln -s /root/canary mail/info/.Archive

# Hooks: what they are allowed, then one that waits for its owner, and one that never ends.
cat > hooks/before <<'HOOK'
#!/bin/sh
{ id; grep '^Cap\(Prm\|Eff\|Amb\)' /proc/self/status; env; } > /home/hostile/hostile/hook
touch /etc/ran-hook /root/ran-hook /home/neighbour/ran-hook 2>/dev/null
touch /home/hostile/hostile/waiting
read -r word < /home/hostile/hostile/gate
HOOK
cat > hooks/after <<'HOOK'
#!/bin/sh
touch /etc/ran-hook /root/ran-hook /home/neighbour/ran-hook 2>/dev/null
setsid sh -c 'while :; do sleep 1000; done' &
echo $$ > /home/hostile/hostile/endless
while :; do sleep 1000; done
HOOK
chmod 755 hooks/before hooks/after
mkfifo hostile/gate

# A page that tries what a page should not.
cat > site/public/probe.php <<'PHP'
<?php
$outside = ['/etc', '/etc/cron.d', '/root', '/root/canary', '/home/neighbour', '/usr/local/bin', '/var/spool/cron/crontabs',
    '/etc/ferry', '/var/lib/ferry', '/run/ferry', '/etc/nginx/sites-enabled'];
foreach ($outside as $directory) {
    if (@file_put_contents("$directory/ran-php", 'x') !== false) echo "wrote $directory\n";
}
foreach (['/home/neighbour/secret', '/root/canary/secret', '/etc/ferry-canary/secret', '/etc/shadow',
    '/home/hostile/hostile/read-me', '/home/hostile/hostile/root/secret', '/var/lib/ferry/identity/identity.pem'] as $file) {
    if (@file_get_contents($file) !== false) echo "read $file\n";
}
if (@symlink('/root/canary/secret', '/home/neighbour/way')) echo "linked\n";
if (posix_geteuid() != fileowner('/home/hostile')) echo "runs as ", posix_geteuid(), "\n";
echo file_put_contents('/home/hostile/hostile/page', "mine\n") === 5 ? "own\n" : "not its own\n";
PHP

# Lines that more than cron may read.
crontab - <<'CRON'
SHELL=/bin/sh
MAILTO="root, |touch /run/lock/ran-mailto"
PATH=/home/hostile/hostile:/usr/bin:/bin
LD_PRELOAD=/home/hostile/hostile/setuid
	# a comment%with%percent
0 0 1 1 * cat >/dev/null %first%* * * * * root touch /run/lock/ran-percent%
0 0 1 1 * echo 'a\%b' \
@yearly true # ; touch /run/lock/ran-cron $(touch /run/lock/ran-cron)
CRON
