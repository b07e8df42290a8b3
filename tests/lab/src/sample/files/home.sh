# What is in the home, made by its owner: every kind of file that a move must keep. Arguments: how many
# directories of small files, how many bytes of a large one.
umask 022
cd /home/demo
mkdir -p site/public/assets data mail ssl kinds
mkdir -m 0750 private
mkdir -m 2775 kinds/team && chgrp demo-team kinds/team
mkdir -m 1777 kinds/sticky

# Some thousand small files.
for d in $(seq 1 "$1"); do
    mkdir -p "site/public/assets/$d"
    for f in $(seq 0 29); do
        echo "body { color: #$d$f; } /* $d/$f */" > "site/public/assets/$d/style-$f.css"
    done
done
head -c "$2" /dev/urandom > data/archive.bin

# Links.
echo 'one file, three names' > kinds/hard-a
ln kinds/hard-a kinds/hard-b
ln kinds/hard-a private/hard-c
ln -s hard-a kinds/relative-link
ln -s /etc/hostname kinds/absolute-link
ln -s nowhere kinds/dangling-link
ln -s ../.. kinds/climbing-link

# A sparse file: 64 MiB long with one block in the middle and one at the end.
truncate -s 64M kinds/sparse
printf 'in the middle' | dd of=kinds/sparse bs=1 seek=33554432 conv=notrunc status=none
printf 'at the end' | dd of=kinds/sparse bs=1 seek=67108000 conv=notrunc status=none

mkfifo -m 0640 kinds/fifo

# Names: not UTF-8, as long as can be, and such that break scripts.
touch "kinds/$(printf 'latin-\351\350-\377')"
touch "kinds/$(printf '%0255d' 7)"
touch "kinds/ blank and
newline" kinds/-rf 'kinds/*' 'kinds/$(id)' 'kinds/"quote'\'''
mkdir -p kinds/deep/a/b/c/d/e/f/g/h/i/j/k/l/m/n/o/p && echo deep > kinds/deep/a/b/c/d/e/f/g/h/i/j/k/l/m/n/o/p/file

# Access lists and attributes.
echo shared > kinds/acl-file
setfacl -m u:demo:rw-,g:demo-team:rw-,m::rw- kinds/acl-file
mkdir kinds/acl-directory
setfacl -m g:demo-team:r-x -d -m u:demo:rwx,g:demo-team:rwx kinds/acl-directory
echo inherited > kinds/acl-directory/inherits
echo tagged > kinds/attributes
setfattr -n user.origin -v 'the sample account' kinds/attributes
setfattr -n user.binary -v 0x00ff10 kinds/attributes
setfattr -n user.on-directory -v yes kinds/team

# Modes and times.
echo '#!/bin/sh' > kinds/program && chmod 0755 kinds/program
echo hidden > kinds/unreadable && chmod 0000 kinds/unreadable
cp kinds/program kinds/setuid && chmod 4755 kinds/setuid
touch -d '1999-12-31 23:59:59.123456789' kinds/old
touch -d '2038-02-01 00:00:00.5' kinds/future
chmod 0444 kinds/old

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 365 \
    -subj /CN=demo.example -addext subjectAltName=DNS:demo.example,DNS:www.demo.example \
    -keyout ssl/demo.example.key -out ssl/demo.example.pem 2>/dev/null
chmod 0600 ssl/demo.example.key
: > data/visits.log
: > data/cron.log
