//! Definitions that would have root's programs do something else: each is refused, with its file, its line
//! and what to do, before anybody can ask to move it.

use anyhow::{Result, ensure};

use crate::exec::EXEC_LIMIT;
use crate::fleet::Fleet;
use crate::host::Host;
use crate::progress::say;
use crate::scenarios::refused;

/// Another account of the same user; what follows is a field of it, or a table.
const BASE: &str = "name = \"NAME\"\nuser = \"neighbour\"\nhome = \"/home/neighbour\"\n";

/// What is added to, or put in the place of, a line of [`BASE`].
const BAD: &[(&str, &str)] = &[
    ("domain", "[[sites]]\nname = \"main\"\nroot = \"public\"\ndomains = [\"; rm -rf /\"]\n"),
    (
        "domain-lines",
        "[[sites]]\nname = \"main\"\nroot = \"public\"\ndomains = [\"a.example;\\n} server {\"]\n",
    ),
    (
        "domain-shell",
        "[[sites]]\nname = \"main\"\nroot = \"public\"\ndomains = [\"$(id).example\"]\n",
    ),
    ("site", "[[sites]]\nname = \"../../default\"\nroot = \"public\"\ndomains = [\"a.example\"]\n"),
    ("root", "[[sites]]\nname = \"main\"\nroot = \"../../etc\"\ndomains = [\"a.example\"]\n"),
    (
        "config",
        "[[sites]]\nname = \"main\"\nroot = \"public\"\ndomains = [\"a.example\"]\nconfig = [\"/etc/../root/canary/secret\"]\n",
    ),
    (
        "key",
        "[[sites]]\nname = \"main\"\nroot = \"public\"\ndomains = [\"a.example\"]\ntls = { certificate = \"ssl/a.pem\", key = \"/root/canary/secret\" }\n",
    ),
    (
        "mailbox",
        "[[mail]]\ndomain = \"a.example\"\nroot = \"mail\"\nmailboxes = [\"../../neighbour\"]\n",
    ),
    (
        "mailbox-lines",
        "[[mail]]\ndomain = \"a.example\"\nroot = \"mail\"\nmailboxes = [\"a\\nroot: b\"]\n",
    ),
    ("group", "groups = [\"sudo,root\"]\n"),
    (
        "database",
        "[[databases]]\nengine = \"mariadb\"\nname = \"x`; DROP DATABASE neighbour; --\"\n",
    ),
    (
        "database-system",
        "[[databases]]\nengine = \"mariadb\"\nname = \"mysql\"\n[[database_users]]\nengine = \"mariadb\"\nname = \"neighbour\"\n",
    ),
    ("database-user", "[[database_users]]\nengine = \"mariadb\"\nname = \"root\"\n"),
    (
        "database-host",
        "[[database_users]]\nengine = \"mariadb\"\nname = \"x\"\nhost = \"localhost' IDENTIFIED BY 'x\"\n",
    ),
    ("hook", "[hooks]\nbefore_fence = \"../../../bin/sh\"\n"),
    ("unknown", "run = \"touch /run/lock/ran-definition\"\n"),
];

/// What takes the place of a line of [`BASE`].
const INSTEAD: &[(&str, &str, &str)] = &[
    ("user", "user = \"neighbour\"", "user = \"root\""),
    ("user-option", "user = \"neighbour\"", "user = \"--help\""),
    ("home", "home = \"/home/neighbour\"", "home = \"/etc/cron.d\""),
    ("home-dots", "home = \"/home/neighbour\"", "home = \"/home/../root\""),
    ("name", "name = \"NAME\"", "name = \"../../passwd\""),
];

/// What a program of the provider's may be brought to print.
const INVENTORY: &str = r#"#!/bin/sh
echo '[{"name": "bad-inventory", "user": "neighbour", "home": "/home/neighbour", "sites": [{"name": "main",
    "root": "public", "domains": ["; rm"]}]}]'
"#;

/// Writes them all, and looks at what the agent and the controller say of them.
pub(super) fn run(fleet: &Fleet<'_>, client: &Host) -> Result<()> {
    let mut names = Vec::new();
    for (name, text) in all() {
        client.write_file(&format!("/etc/ferry/accounts.d/{name}.toml"), 0o644, text.as_bytes())?;
        names.push(name);
    }
    client.write_file("/etc/ferry/inventory.d/bad-inventory", 0o755, INVENTORY.as_bytes())?;
    let said = client.exec_with(&["ferry-agent", "accounts"], &[], EXEC_LIMIT)?;
    let files: Vec<String> = names.iter().map(|name| format!("{name}.toml")).collect();
    let words: Vec<&str> = files.iter().map(String::as_str).chain(["bad-inventory"]).collect();
    refused("hostile definitions", &said, &words)?;
    let text = format!("{}{}", said.text(), said.error_text());
    ensure!(!text.contains('\u{1b}'), "a definition speaks to the terminal: {text:?}");
    ensure!(text.contains("hostile: user hostile"), "they disturb the others: {text}");
    for name in &names {
        ensure!(fleet.standings(name)?.is_empty(), "the controller knows of {name}");
    }
    let argv = ["move", "bad-domain", "--to", "transit", "--yes"];
    refused(
        "moving what is not defined",
        &fleet.ferry(&argv)?,
        &["no server serves", "bad-domain"],
    )?;
    for name in ["; rm", "../x", "$(id)", "--config", "a\nb"] {
        refused(
            "a name that is none",
            &fleet.ferry(&["move", name, "--to", "transit"])?,
            &["error"],
        )?;
    }
    client.sh("rm /etc/ferry/accounts.d/bad-*.toml /etc/ferry/inventory.d/bad-inventory")?;
    say(format!("{} hostile definitions are refused", names.len() + 1));
    Ok(())
}

fn all() -> impl Iterator<Item = (String, String)> {
    let whole = |name: &str, text: String| {
        let name = format!("bad-{name}");
        let text = text.replace("NAME", &name);
        (name, text)
    };
    let added = BAD.iter().map(move |(name, more)| whole(name, format!("{BASE}{more}")));
    let changed = INSTEAD.iter().map(move |(name, line, bad)| whole(name, BASE.replace(line, bad)));
    added.chain(changed)
}
