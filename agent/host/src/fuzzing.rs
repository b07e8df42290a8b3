//! Doors for the fuzz targets (`fuzz/`): each reads text as this crate reads it, and panics if what was
//! read breaks a promise. Not part of the crate's interface.

use std::path::Path;

use ferry_proto::account::Definition;
use ferry_proto::fuzzing::{Target, json_keeps};

use crate::{Layout, accounts, cron, nginx_config, sites, users};

/// The targets by name.
pub const TARGETS: &[Target] = &[
    ("definition", definition),
    ("nginx_config", nginx),
    ("user_database", user_database),
    ("user_record", user_record),
];

/// A definition that passes its check is rendered as server blocks of its own names, and nothing more.
pub fn definition(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let definition = match accounts::parse(Path::new("x.toml"), text) {
        Ok(definition) => definition,
        Err(problem) => {
            assert!(problem.line.is_none_or(|line| line <= 1 + text.lines().count()));
            return;
        }
    };
    ferry_proto::fuzzing::checked(&definition);
    let json = serde_json::to_vec(&definition).expect("what was read can be written");
    assert_eq!(json_keeps::<Definition>(&json).as_ref(), Some(&definition));
    let php = Some("8.2".to_owned());
    let plan =
        sites::SitesPlan { definition: definition.clone(), php, ipv6: true, findings: Vec::new() };
    for file in sites::render(&Layout::system(), &plan) {
        assert!(file.path.starts_with("/etc"), "{:?}", file.path);
        let Some(site) = definition.sites.iter().find(|s| s.name.as_str() == file.site) else {
            panic!("a file of no site: {:?}", file.site);
        };
        if file.role == sites::Role::Server {
            let names = nginx_config::summarise(&file.text).names;
            let own: Vec<String> = site.domains.iter().map(ToString::to_string).collect();
            assert_eq!(names, own);
            assert_eq!(file.text.matches("server {").count(), 1, "{}", file.text);
        }
    }
}

/// The copy of a configuration that closes connections says the same otherwise, and is its own copy.
pub fn nginx(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let closing = nginx_config::closing(&text);
    let (before, after) = (nginx_config::summarise(&text), nginx_config::summarise(&closing));
    assert_eq!(before, after);
    // Blanks aside, which stand where something was.
    let plain = |text: &str| text.split_whitespace().collect::<String>();
    assert_eq!(plain(&nginx_config::closing(&closing)), plain(&closing));
    for listen in before.listens {
        assert!(!listen.directive().contains(['{', '}', ';', '\n', '#']), "{listen:?}");
        let _ = (listen.plain_port(), listen.visitors_port());
    }
}

/// Lines of the user database and of the system's crontabs.
pub fn user_database(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    users::passwd::fuzz(&text);
    for line in text.lines() {
        let ours = cron::runs_as(line, "shop");
        assert!(!ours || line.split_whitespace().any(|word| word == "shop"));
    }
}

/// What another server says of a user and its crontab.
pub fn user_record(bytes: &[u8]) {
    json_keeps::<cron::CronRecord>(bytes);
    let Some(record) = json_keeps::<users::UserRecord>(bytes) else { return };
    users::fuzz(&record);
}
