//! What no account may have at the target: each move is refused with the paths and what to do, before
//! anything is done.

use anyhow::{Result, ensure};

use super::HOSTILE;
use crate::fleet::Fleet;
use crate::host::Host;
use crate::scenarios::refused;

/// What no account may have, made by root since no owner can: a script, and what the refusal must name. Each
/// has no more paths than a finding names.
const BAD: &[(&str, &str, &[&str])] = &[
    (
        "files of others",
        r#"cd /home/hostile/bad
        echo x > of-neighbour && chown neighbour:neighbour of-neighbour
        mkdir of-root
        ln /home/spare linked
        cp /bin/true capable && chown hostile:hostile capable
        setfattr -n security.capability -v 0x0100000200200000000000000000000000000000 capable
        echo x > "$(printf 'esc\033[2J\nname')""#,
        &[
            "bad/of-neighbour",
            "bad/of-root",
            "bad/linked",
            "its owner 0",
            "bad/capable",
            "capabilities",
            "chown",
        ],
    ),
    (
        "rights and devices",
        r#"cd /home/hostile/bad
        mknod null c 1 3 && chown hostile:hostile null
        cp /bin/true setuid && chown www-data:hostile setuid && chmod 4755 setuid
        cp /bin/true setgid && chown hostile:hostile-team setgid && chmod 2755 setgid
        echo x > trusted && chown hostile:hostile trusted && setfattr -n trusted.x -v x trusted
        echo x > acl && chown hostile:hostile acl && setfacl -m u:neighbour:rw acl"#,
        &[
            "bad/null",
            "device",
            "bad/setuid",
            "setuid to user",
            "bad/setgid",
            "bad/trusted",
            "bad/acl",
            "or remove them",
        ],
    ),
    (
        "others' rights in databases",
        r#"mariadb hostile_shop -e "
            CREATE DEFINER = root@localhost SQL SECURITY DEFINER VIEW root_view AS SELECT User FROM mysql.user;
            CREATE DEFINER = root@localhost TRIGGER root_trigger BEFORE UPDATE ON orders FOR EACH ROW SET NEW.amount = 1;
            CREATE DEFINER = root@localhost PROCEDURE root_procedure() DROP DATABASE neighbour"
        cd / && runuser -u postgres -- psql -q -d hostile_app \
            -c 'CREATE FUNCTION root_function() RETURNS int LANGUAGE sql SECURITY DEFINER AS $$ SELECT 1 $$'"#,
        &[
            "root_view",
            "root_trigger",
            "root_procedure",
            "root@localhost, who is not of the account",
            "root_function",
            "belongs to postgres",
        ],
    ),
];
/// Takes all of that away.
const GOOD: &str = r#"rm -rf /home/hostile/bad
mariadb hostile_shop -e "DROP VIEW IF EXISTS root_view; DROP TRIGGER IF EXISTS root_trigger;
    DROP PROCEDURE IF EXISTS root_procedure"
cd / && runuser -u postgres -- psql -q -d hostile_app -c 'SET client_min_messages = error' \
    -c 'DROP FUNCTION IF EXISTS root_function()'"#;

/// Tries them all.
pub(super) fn run(fleet: &Fleet<'_>, hosts: [&Host; 2]) -> Result<()> {
    for (what, plant, words) in BAD {
        hosts[0].sh("install -d -o hostile -g hostile /home/hostile/bad")?;
        hosts[0].sh(plant)?;
        let said = fleet.ferry(&["move", HOSTILE.name, "--to", "transit", "--yes"])?;
        refused(what, &said, words)?;
        let text = format!("{}{}", said.text(), said.error_text());
        ensure!(!text.contains('\u{1b}'), "a file's name speaks to the terminal: {text:?}");
        hosts[0].sh(GOOD)?;
    }
    let there = hosts[1].sh("getent passwd hostile || :; ls -d /home/hostile 2>/dev/null || :")?;
    ensure!(there.is_empty(), "a refused move left on transit: {there}");
    Ok(())
}
