//! What Ferry leaves in a MariaDB server when it is cut off is found and taken away; nothing else is.

mod support;

use ferry_databases::{Engine, Existing, Record};
use ferry_proto::artefact::{Artefact, Kind};
use support::mariadb::{Maria, spec};

const SHOP: &[&str] = &[
    "CREATE DATABASE shop",
    "CREATE USER shop@localhost IDENTIFIED BY 'x'",
    "GRANT ALL ON shop.* TO shop@localhost",
    "CREATE TABLE shop.t (n int)",
];
/// The temporary users of account `shop`, and of one that nobody knows.
const TEMPORARY: &str = "ferry_load_0123456789abcdef";

async fn observed(engine: &dyn Engine) -> Vec<Artefact> {
    engine.observe(&["shop".parse().expect("a name")]).await.expect("observed")
}

fn places(found: &[Artefact]) -> Vec<(Kind, &str)> {
    let mut all: Vec<_> = found.iter().map(|a| (a.kind, a.place.as_str())).collect();
    all.sort_unstable();
    all
}

async fn shop_record() -> Record {
    let source = Maria::start();
    source.run(SHOP).await;
    let spec = spec(&["shop"], &[("shop", "localhost")]);
    source.engine().record(&spec, None).await.expect("recorded")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_move_that_was_cut_off_leaves_is_found_and_removed() {
    let (record, target) = (shop_record().await, Maria::start());
    let engine = target.engine();
    // What is the provider's is not taken for Ferry's.
    target
        .run(["CREATE DATABASE other COMMENT 'ferry'", "CREATE USER ferry_load_x@localhost"])
        .await;
    target.run(["CREATE USER locked@localhost IDENTIFIED BY 'y' ACCOUNT LOCK"]).await;
    assert_eq!(observed(&*engine).await, Vec::new());

    let shop = spec(&["shop"], &[("shop", "localhost")]);
    engine.provision(&shop, &record, Existing::Refuse).await.expect("provisioned");
    target.run([format!("CREATE USER {TEMPORARY}@localhost IDENTIFIED BY 'z'")]).await;
    let left = target.connect(TEMPORARY, Some("z")).await.expect("let in");
    let found = observed(&*engine).await;
    let session = format!("{} of {TEMPORARY}", left.id());
    assert_eq!(
        places(&found),
        [
            (Kind::Database, "shop"),
            (Kind::DatabaseUser, "shop@localhost"),
            (Kind::TemporaryDatabaseUser, &format!("{TEMPORARY}@localhost")),
            (Kind::Session, session.as_str()),
        ]
    );
    assert!(found.iter().all(|a| a.by_hand.is_none()));
    // The mark of a user is known by the database's, whoever else knows the account.
    assert_eq!(engine.observe(&[]).await.expect("observed"), found);

    for _ in 0..2 {
        for artefact in &found {
            engine.remove(artefact).await.expect("removed");
        }
    }
    assert_eq!(observed(&*engine).await, Vec::new());
    assert_eq!(
        target.text("SELECT User FROM mysql.user WHERE User LIKE '%load%'").await,
        "ferry_load_x"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn content_and_what_was_opened_stay() {
    let (record, target) = (shop_record().await, Maria::start());
    let engine = target.engine();
    let shop = spec(&["shop"], &[("shop", "localhost")]);
    engine.provision(&shop, &record, Existing::Refuse).await.expect("provisioned");
    let found = observed(&*engine).await;
    target.run(["CREATE TABLE shop.t (n int)"]).await;
    let full = observed(&*engine).await;
    let database = full.iter().find(|a| a.kind == Kind::Database).expect("found");
    assert!(database.by_hand.as_ref().is_some_and(|h| h.contains("DROP DATABASE")), "{database:?}");
    // Content that came since it was observed, and an open, count.
    let stale = found.iter().find(|a| a.kind == Kind::Database).expect("found");
    engine.remove(stale).await.expect_err("it has content");
    engine.open(&shop, &record).await.expect("opened");
    assert_eq!(observed(&*engine).await, Vec::new());
    for artefact in &found {
        engine.remove(artefact).await.expect_err("it is the account's own now");
    }
    assert_eq!(target.text("SELECT COUNT(*) FROM mysql.user WHERE User = 'shop'").await, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fence_that_nobody_undoes_is_seen() {
    let server = Maria::start();
    server.run(SHOP).await;
    let (engine, shop) = (server.engine(), spec(&["shop"], &[("shop", "localhost")]));
    assert_eq!(engine.left_closed(&shop).await.expect("looked"), Vec::new());
    let fence = engine.plan_fence(&shop).await.expect("planned");
    engine.fence(&shop, &fence, std::time::Duration::ZERO).await.expect("fenced");
    let left = engine.left_closed(&shop).await.expect("looked");
    assert_eq!(places(&left), [(Kind::ClosedDatabase, "shop@localhost")]);
    assert!(left[0].by_hand.as_ref().is_some_and(|h| h.contains("ACCOUNT UNLOCK")));
    engine.unfence(&shop, &fence).await.expect("unfenced");
    assert_eq!(engine.left_closed(&shop).await.expect("looked"), Vec::new());
}
