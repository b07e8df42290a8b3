//! A shop with everything that is hard to move goes from one MariaDB server to another.

mod support;

use std::time::Duration;

use ferry_databases::{Existing, Level};
use mysql_async::prelude::Queryable;
use support::mariadb::{Maria, NASTY, nasty_spec};
use support::{differences, transfer};

const GRACE: Duration = Duration::from_millis(300);

#[tokio::test(flavor = "multi_thread")]
async fn everything_arrives_and_works() {
    let (a, b) = (Maria::start(), Maria::start());
    a.run(NASTY).await;
    let (source, target, spec) = (a.engine(), b.engine(), nasty_spec());

    let facts = source.inspect(&spec).await.expect("inspected");
    let blockers: Vec<_> = facts.blockers().collect();
    assert!(blockers.is_empty(), "{blockers:?}");
    assert!(
        facts.findings.iter().any(|f| f.level == Level::Warning && f.subject.contains("broken"))
    );

    let before = source.record(&spec, None).await.expect("recorded");
    let plan = source.plan_fence(&spec).await.expect("planned");
    source.fence(&spec, &plan, GRACE).await.expect("fenced");
    let record = source.record(&spec, Some(&plan)).await.expect("recorded again");
    assert_eq!(before, record, "a fence does not change what is recorded");

    let found = target.check_target(&spec, &record, Existing::Refuse).await.expect("checked");
    assert!(found.iter().all(|f| f.level != Level::Blocker), "{found:?}");
    let created = target.provision(&spec, &record, Existing::Refuse).await.expect("provisioned");
    assert_eq!((created.databases.len(), created.users.len()), (2, 4));
    transfer(&*source, &*target, &spec, &record).await.expect("transferred");
    assert_eq!(differences(&*source, &*target, &spec).await, Vec::<String>::new());
    target.rehearse(&spec, &record).await.expect("rehearsed");

    assert!(b.connect("shop", Some("old password")).await.is_err(), "closed before the open");
    let rows = b.text("SELECT COUNT(*) FROM shop_main.bag").await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(b.text("SELECT COUNT(*) FROM shop_main.bag").await, rows, "events are off");

    target.open(&spec, &record).await.expect("opened");
    target.open(&spec, &record).await.expect("opened again");
    let mut found = differences(&*source, &*target, &spec).await;
    // The event writes there as soon as it is on.
    found.retain(|d| !d.starts_with("table bag, "));
    assert_eq!(found, Vec::<String>::new());
    works(&b).await;
    source.unfence(&spec, &plan).await.expect("unfenced");
    for user in ["shop@localhost", "shop@127.0.0.1", "reader@'%'", "gone@localhost"] {
        let sql = format!("SHOW CREATE USER {user}");
        assert_eq!(a.text(&sql).await, b.text(&sql).await);
    }
    assert_eq!(b.text("SELECT User FROM mysql.global_priv WHERE User LIKE 'ferry%'").await, "");
    assert_eq!(
        b.text(
            "SELECT SCHEMA_COMMENT FROM information_schema.SCHEMATA WHERE SCHEMA_NAME = 'shop_main'"
        )
        .await,
        "the shop's"
    );
}

/// The account's own passwords, rights and stored objects.
async fn works(server: &Maria) {
    let mut shop = server.connect("shop", Some("old password")).await.expect("let in");
    shop.query_drop("USE shop_main").await.expect("may use it");
    shop.query_drop("INSERT INTO z_parent (name) VALUES ('new')").await.expect("may write");
    let name: Option<String> = shop
        .query_first("SELECT name FROM z_parent ORDER BY id DESC LIMIT 1")
        .await
        .expect("may read");
    assert_eq!(name.as_deref(), Some("new 1 ü2"), "triggers run, in their order");
    let count: Option<i64> =
        shop.query_first("SELECT COUNT(*) FROM a_view").await.expect("views work");
    assert_eq!(count, Some(3));
    let mut reader = server.connect("reader", Some("read")).await.expect("let in");
    reader.query_drop("SELECT f FROM shop_main.numbers").await.expect("may read a column");
    reader.query_drop("SELECT n FROM shop_main.numbers").await.expect_err("but no other");
    reader.query_drop("SELECT shop_main.twice(2)").await.expect("may call it");
    server.connect("gone", Some("x")).await.expect_err("was locked at the source");
    server.connect("shop", Some("wrong")).await.expect_err("needs the password");
    let rows = server.text("SELECT COUNT(*) FROM shop_main.bag").await;
    let start = std::time::Instant::now();
    while server.text("SELECT COUNT(*) FROM shop_main.bag").await == rows {
        assert!(start.elapsed() < Duration::from_secs(10), "the event does not run");
    }
}
