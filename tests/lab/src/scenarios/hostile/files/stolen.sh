# What an escape would have brought into the home: others' secrets, others' files, and rights.
cd /home/hostile
grep -rl --devices=skip 'canary-secret' . || :
find . \( ! -user hostile -o -type b -o -type c -o -perm /6000 ! -path './hostile/setuid' ! -path './hostile/setgid' \
    ! -path './kinds/*' \) -printf 'foreign %p|%y|%m|%u|%g\n'
find . -type f -print0 | xargs -0 getfattr -h -d -m '^(security\.capability|trusted\.)' 2>/dev/null || :
# The places of the race: the owner's own (empty if the fence ended the race between opening and writing), or a
# way out that nobody has gone.
for place in hostile/race/place hostile/race/aside; do
    if [ -d $place ] && [ ! -L $place ]; then
        find $place -mindepth 1 ! -name secret -print
        if [ -s $place/secret ]; then grep -L '^mine$' $place/secret || :; fi
    fi
done
