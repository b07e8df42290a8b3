//! What stands in the way at a MariaDB target is told before anything is changed.

mod support;

use ferry_databases::{Existing, Finding, Level, Record, Spec};
use support::mariadb::{Maria, spec};

const SHOP: &[&str] = &[
    "CREATE DATABASE shop",
    "CREATE USER shop@localhost IDENTIFIED VIA ed25519 USING 'ZIgUREUg5PVgQ6LskhXmO+eZLS0nC8be6HPjYWR4YJY'",
    "GRANT ALL ON shop.* TO shop@localhost",
    "CREATE TABLE shop.t (b longblob)",
    "INSERT INTO shop.t VALUES (REPEAT('x', 4000000))",
    // The size of a table is known once it was counted.
    "ANALYZE TABLE shop.t",
    "CREATE DEFINER = shop@localhost EVENT shop.e ON SCHEDULE EVERY 1 DAY DO DO 1",
];

fn shop() -> Spec {
    spec(&["shop"], &[("shop", "localhost")])
}

async fn check(server: &Maria, record: &Record, existing: Existing) -> Vec<Finding> {
    server.engine().check_target(&shop(), record, existing).await.expect("checked")
}

/// Exactly one finding says this, and it weighs so much.
#[track_caller]
fn says(findings: &[Finding], level: Level, part: &str) {
    let found: Vec<&Finding> = findings.iter().filter(|f| f.message.contains(part)).collect();
    assert!(found.len() == 1 && found[0].level == level, "{part}: {findings:?}");
    assert!(!found[0].remedy.is_empty(), "{part}: no remedy");
}

/// The record as another source would have written it.
fn with(record: &Record, change: impl FnOnce(&mut serde_json::Value)) -> Record {
    let mut json = serde_json::to_value(record).expect("serialises");
    change(&mut json["databases"][0]);
    serde_json::from_value(json).expect("reads")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_target_lacks_is_told() {
    let (a, b) = (Maria::start(), Maria::start());
    a.run(SHOP).await;
    let record = a.engine().record(&shop(), None).await.expect("recorded");
    assert_eq!(check(&b, &record, Existing::Refuse).await, Vec::new());

    b.run(["SET GLOBAL event_scheduler = OFF", "SET GLOBAL max_allowed_packet = 1048576"]).await;
    b.run(["UNINSTALL PLUGIN ed25519"]).await;
    let found = check(&b, &record, Existing::Refuse).await;
    says(&found, Level::Blocker, "the target's server does not run events");
    says(&found, Level::Warning, "statements of 1048576 bytes at most");
    says(&found, Level::Blocker, "logs in by ed25519");
    assert_eq!(found.len(), 3, "{found:?}");
    b.run(["SET GLOBAL event_scheduler = ON", "SET GLOBAL max_allowed_packet = 16777216"]).await;
    b.run(["INSTALL SONAME 'auth_ed25519'"]).await;

    let other = with(&record, |database| {
        database["collations"] = serde_json::json!(["utf8mb4_uca9999_ai_ci"]);
        database["storage_engines"] = serde_json::json!(["RocksDB"]);
        database["types"] = serde_json::json!(["xmltype"]);
        database["time_zones"] = serde_json::json!(["SYSTEM", "+01:00", "Mars/Olympus"]);
    });
    let found = check(&b, &other, Existing::Refuse).await;
    for part in
        ["collation utf8mb4_uca9999_ai_ci", "engine RocksDB", "type xmltype", "Mars/Olympus"]
    {
        says(&found, Level::Blocker, part);
    }
    assert_eq!(found.len(), 4, "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_never_ran_are_told() {
    let (a, b) = (Maria::start_with(&["--event-scheduler=OFF"]), Maria::start());
    a.run(SHOP).await;
    let record = a.engine().record(&shop(), None).await.expect("recorded");
    let found = check(&b, &record, Existing::Refuse).await;
    says(&found, Level::Warning, "enabled but never ran");
    b.run(["SET GLOBAL event_scheduler = OFF"]).await;
    assert_eq!(check(&b, &record, Existing::Refuse).await, Vec::new(), "neither do they there");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_taken_or_open_at_the_target_is_told() {
    let (a, b) = (Maria::start(), Maria::start());
    a.run(SHOP).await;
    let record = a.engine().record(&shop(), None).await.expect("recorded");
    b.run([
        "CREATE DATABASE shop",
        "CREATE USER shop@localhost",
        "CREATE USER shop@'%'",
        "CREATE USER panel@localhost",
        "GRANT INSERT ON `sh%`.* TO panel@localhost",
    ])
    .await;
    let found = check(&b, &record, Existing::Refuse).await;
    says(&found, Level::Blocker, "database shop exists at the target");
    says(&found, Level::Blocker, "shop@localhost exists at the target");
    says(&found, Level::Blocker, "shop@% has the name of a user of the account");
    says(&found, Level::Blocker, "panel@localhost has rights in database shop");
    let found = check(&b, &record, Existing::Replace).await;
    says(&found, Level::Blocker, "shop@localhost can log in at the target");
    b.run(["DROP DATABASE shop", "DROP USER shop@localhost, shop@'%'"]).await;
    let found = check(&b, &record, Existing::Refuse).await;
    says(&found, Level::Blocker, "panel@localhost has rights in database shop");
    assert_eq!(found.len(), 1, "before the database is there: {found:?}");
}
