//! What stands in the way at a PostgreSQL target is told before anything is changed.

mod support;

use ferry_databases::{Existing, Finding, Level, PostgresqlConfig, Record, Spec};
use support::postgresql::{Postgres, spec};

fn shop() -> Spec {
    spec(&["shop"], &["shop"])
}

async fn check(server: &Postgres, record: &Record, existing: Existing) -> Vec<Finding> {
    server.engine().check_target(&shop(), record, existing).await.expect("checked")
}

/// Exactly one finding says this, and it weighs so much.
#[track_caller]
fn says(findings: &[Finding], level: Level, part: &str) {
    let found: Vec<&Finding> = findings.iter().filter(|f| f.message.contains(part)).collect();
    assert!(found.len() == 1 && found[0].level == level, "{part}: {findings:?}");
    assert!(level < Level::Warning || !found[0].remedy.is_empty(), "{part}: no remedy");
}

/// The record as another source would have written it.
fn with(record: &Record, change: impl FnOnce(&mut serde_json::Value)) -> Record {
    let mut json = serde_json::to_value(record).expect("serialises");
    change(&mut json);
    serde_json::from_value(json).expect("reads")
}

async fn pair() -> (Postgres, Record) {
    let (a, b) = (Postgres::start(), Postgres::start());
    a.run("postgres", "CREATE ROLE shop LOGIN PASSWORD 'pw'; CREATE DATABASE shop OWNER shop");
    a.run("shop", "CREATE EXTENSION citext");
    let record = a.engine().record(&shop(), None).await.expect("recorded");
    (b, record)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_target_lacks_is_told() {
    let (b, record) = pair().await;
    assert_eq!(check(&b, &record, Existing::Refuse).await, Vec::new());
    let other = with(&record, |json| {
        json["major"] = 99.into();
        let database = &mut json["databases"][0];
        database["locale"]["collate"] = "tlh_KX.UTF-8".into();
        database["extensions"][0]["name"] = "dict_xsyn".into();
        database["extensions"][0]["version"] = "0.1".into();
        json["roles"][0]["verifier"] = "md5d41d8cd98f00b204e9800998ecf8427e".into();
    });
    let found = check(&b, &other, Existing::Refuse).await;
    says(&found, Level::Blocker, "the locale tlh_KX.UTF-8");
    says(&found, Level::Note, "is older than the source's");
    says(&found, Level::Note, "has version 0.1 here");
    says(&found, Level::Warning, "the password of shop is kept as MD5");
    assert_eq!(found.len(), 4, "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_cannot_be_loaded_is_told() {
    let (b, record) = pair().await;
    let nowhere = b.dir.path().join("nothing");
    let config = PostgresqlConfig {
        host: "127.0.0.77".to_owned(),
        bin_dir: Some(nowhere),
        ..b.config.clone()
    };
    let engine = ferry_databases::postgresql(config);
    let found = engine.check_target(&shop(), &record, Existing::Refuse).await.expect("checked");
    says(&found, Level::Blocker, "does not take connections at 127.0.0.77");
    says(&found, Level::Blocker, "psql of PostgreSQL");
    assert_eq!(found.len(), 2, "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_taken_or_open_at_the_target_is_told() {
    let (b, record) = pair().await;
    b.run("postgres", "CREATE DATABASE shop; CREATE ROLE shop LOGIN");
    let found = check(&b, &record, Existing::Refuse).await;
    says(&found, Level::Blocker, "database shop exists at the target");
    says(&found, Level::Blocker, "role shop exists at the target");
    let found = check(&b, &record, Existing::Replace).await;
    says(&found, Level::Blocker, "role shop can log in at the target");
    assert_eq!(found.len(), 1, "{found:?}");
}
