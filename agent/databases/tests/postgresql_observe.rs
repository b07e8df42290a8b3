//! What Ferry leaves in a PostgreSQL server when it is cut off is found and taken away; nothing else is.

mod support;

use std::time::Duration;

use ferry_databases::{Engine, Existing};
use ferry_proto::artefact::{Artefact, Kind};
use support::postgresql::{Postgres, spec};

/// Of an account that nobody knows.
const TEMPORARY: &str = "ferry_load_0123456789abcdef";
const UNNAMED: &str = "ferry_new_0123456789abcdef";

async fn observed(engine: &dyn Engine) -> Vec<Artefact> {
    engine.observe(&["shop".parse().expect("a name")]).await.expect("observed")
}

fn places(found: &[Artefact]) -> Vec<(Kind, &str)> {
    let mut all: Vec<_> = found.iter().map(|a| (a.kind, a.place.as_str())).collect();
    all.sort_unstable();
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_move_that_was_cut_off_leaves_is_found_and_removed() {
    let server = Postgres::start();
    let engine = server.engine();
    server.run("postgres", "CREATE ROLE shop LOGIN; CREATE DATABASE shop OWNER shop;");
    let shop = spec(&["shop"], &["shop"]);
    let record = engine.record(&shop, None).await.expect("recorded");
    server.run("postgres", "DROP DATABASE shop");
    server.run("postgres", "DROP ROLE shop; CREATE ROLE ferry_load_x; CREATE DATABASE other");
    assert_eq!(observed(&*engine).await, Vec::new());

    engine.provision(&shop, &record, Existing::Refuse).await.expect("provisioned");
    server.run("postgres", &format!("CREATE DATABASE {UNNAMED} CONNECTION LIMIT 0"));
    // One that was cut off in the middle of a load: it owns something, and may enter.
    server.run("postgres", &format!("CREATE ROLE {TEMPORARY} LOGIN PASSWORD 'z'"));
    server.run("other", &format!("CREATE TABLE t (n int); ALTER TABLE t OWNER TO {TEMPORARY}"));
    let found = observed(&*engine).await;
    assert_eq!(
        places(&found),
        [
            (Kind::Database, "shop"),
            (Kind::DatabaseUser, "shop"),
            (Kind::TemporaryDatabase, UNNAMED),
            (Kind::TemporaryDatabaseUser, TEMPORARY),
        ]
    );
    assert!(found.iter().all(|a| a.by_hand.is_none()), "{found:?}");
    for _ in 0..2 {
        for artefact in &found {
            engine.remove(artefact).await.expect("removed");
        }
    }
    assert_eq!(observed(&*engine).await, Vec::new());
    assert_eq!(
        server.run("other", "SELECT tableowner FROM pg_tables WHERE tablename = 't'"),
        "postgres"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn content_stays_and_a_fence_that_nobody_undoes_is_seen() {
    let server = Postgres::start();
    let engine = server.engine();
    server.run("postgres", "CREATE ROLE shop LOGIN; CREATE DATABASE shop OWNER shop;");
    let shop = spec(&["shop"], &["shop"]);
    assert_eq!(engine.left_closed(&shop).await.expect("looked"), Vec::new());
    let fence = engine.plan_fence(&shop).await.expect("planned");
    engine.fence(&shop, &fence, Duration::ZERO).await.expect("fenced");
    assert_eq!(
        places(&engine.left_closed(&shop).await.expect("looked")),
        [(Kind::ClosedDatabase, "shop")]
    );

    server.run("shop", "CREATE TABLE t (n int)");
    let mark = "ferry: closed, being received for account shop";
    server.run("postgres", &format!("COMMENT ON DATABASE shop IS '{mark}'"));
    let found = observed(&*engine).await;
    assert_eq!(places(&found), [(Kind::Database, "shop")]);
    assert!(found[0].by_hand.as_ref().is_some_and(|h| h.contains("DROP DATABASE")));
    engine.remove(&found[0]).await.expect_err("it has content");
    server.run("postgres", "COMMENT ON DATABASE shop IS NULL");
    engine.remove(&found[0]).await.expect_err("it bears no mark");
    assert_eq!(server.run("shop", "SELECT count(*) FROM t"), "0");

    // What it had cannot be had again once its dropping was cut off.
    server.half_drop("shop");
    engine.remove(&found[0]).await.expect_err("it bears no mark");
    server.run(
        "postgres",
        &format!("UPDATE pg_database SET datconnlimit = -1; COMMENT ON DATABASE shop IS '{mark}'"),
    );
    server.half_drop("shop");
    let found = observed(&*engine).await;
    assert!(found[0].by_hand.is_none(), "{found:?}");
    engine.remove(&found[0]).await.expect("removed");
    assert_eq!(observed(&*engine).await, Vec::new());
}
