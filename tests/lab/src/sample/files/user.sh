# The account's Unix user, with a password and a key to log in with.
groupadd demo-team
useradd --create-home --home-dir /home/demo --shell /bin/bash --groups demo-team \
    --comment 'Sample account' demo
echo 'demo:sample-login-password' | chpasswd
chmod 0711 /home/demo
install -d -o demo -g demo -m 0700 /home/demo/.ssh
install -o demo -g demo -m 0600 /dev/null /home/demo/.ssh/authorized_keys
echo 'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ5lY3JldHNhbXBsZWtleWZvcnRoZWxhYm9ubHkx demo' \
    > /home/demo/.ssh/authorized_keys
