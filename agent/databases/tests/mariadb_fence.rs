//! The fence of MariaDB: denial by the server itself, events off, transactions gone; and back.

mod support;

use std::time::{Duration, Instant};

use mysql_async::prelude::Queryable;
use support::mariadb::{Maria, spec};

const SHOP: &[&str] = &[
    "CREATE DATABASE shop",
    "CREATE USER shop@localhost IDENTIFIED BY 'pw'",
    "CREATE USER off@localhost IDENTIFIED BY 'pw' ACCOUNT LOCK",
    "CREATE USER bystander@localhost IDENTIFIED BY 'b'",
    "GRANT ALL ON shop.* TO shop@localhost",
    "CREATE TABLE shop.t (a int) ENGINE = InnoDB",
    "CREATE TABLE shop.ticks (a int)",
    "SET NAMES latin1, sql_mode = 'ANSI_QUOTES', time_zone = '+03:00'",
    "USE shop",
    "CREATE DEFINER = shop@localhost EVENT tick ON SCHEDULE EVERY 1 SECOND COMMENT 'c' DO INSERT INTO ticks VALUES (1)",
    "CREATE DEFINER = shop@localhost EVENT idle ON SCHEDULE EVERY 1 SECOND DISABLE DO INSERT INTO ticks VALUES (2)",
];

fn shop() -> ferry_databases::Spec {
    spec(&["shop"], &[("shop", "localhost"), ("off", "localhost")])
}

const EVENTS: &str = "SELECT EVENT_NAME, DEFINER, TIME_ZONE, STARTS, STATUS, SQL_MODE, CHARACTER_SET_CLIENT, \
     COLLATION_CONNECTION, DATABASE_COLLATION, EVENT_COMMENT FROM information_schema.EVENTS ORDER BY 1";
const USERS: &str = "SELECT User, Host, IFNULL(JSON_VALUE(Priv, '$.account_locked'), 0), JSON_VALUE(Priv, '$.authentication_string') \
     FROM mysql.global_priv ORDER BY 1, 2";

#[tokio::test(flavor = "multi_thread")]
async fn logins_are_refused_transactions_end_events_stop() {
    let server = Maria::start();
    server.run(SHOP).await;
    let (engine, spec) = (server.engine(), shop());
    assert!(!engine.is_fenced(&spec).await.expect("asked"));
    let (events, users) = (server.text(EVENTS).await, server.text(USERS).await);
    let mut open = server.connect("shop", Some("pw")).await.expect("let in");
    open.query_drop("BEGIN").await.expect("begins");
    open.query_drop("INSERT INTO shop.t VALUES (1)").await.expect("writes");
    let mut bystander = server.connect("bystander", Some("b")).await.expect("let in");

    let plan = engine.plan_fence(&spec).await.expect("planned");
    let start = Instant::now();
    engine.fence(&spec, &plan, Duration::from_millis(700)).await.expect("fenced");
    assert!(start.elapsed() >= Duration::from_millis(700), "an open transaction gets its grace");
    open.query_drop("COMMIT").await.expect_err("its connection was ended");
    assert_eq!(server.text("SELECT COUNT(*) FROM shop.t").await, "0", "and it is rolled back");
    assert!(server.connect("shop", Some("pw")).await.is_err(), "logins are refused");
    bystander.query_drop("SELECT 1").await.expect("others are left alone");
    let ticks = server.text("SELECT COUNT(*) FROM shop.ticks").await;
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(server.text("SELECT COUNT(*) FROM shop.ticks").await, ticks, "events are off");
    // Somebody else who is just logging in, as there always is on a busy server.
    let asked =
        "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE USER = 'unauthenticated user'";
    let _knocking = std::os::unix::net::UnixStream::connect(&server.config.socket).expect("open");
    while server.text(asked).await != "1" {
        tokio::task::yield_now().await;
    }
    assert!(engine.is_fenced(&spec).await.expect("asked"));
    engine.fence(&spec, &plan, Duration::ZERO).await.expect("again");

    engine.unfence(&spec, &plan).await.expect("unfenced");
    engine.unfence(&spec, &plan).await.expect("again");
    assert_eq!(server.text(EVENTS).await, events, "events are exactly as they were");
    assert_eq!(server.text(USERS).await, users, "users too");
    server.connect("shop", Some("pw")).await.expect("let in again");
    assert!(server.connect("off", Some("pw")).await.is_err(), "was locked before");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fence_does_not_wait_for_a_backup_that_has_locked_all_tables() {
    let server = Maria::start();
    server.run(SHOP).await;
    let (engine, spec) = (server.engine(), shop());
    let mut backup = backup(&server).await;
    let plan = engine.plan_fence(&spec).await.expect("planned");
    let fault = engine.fence(&spec, &plan, Duration::ZERO).await.expect_err("locked");
    assert_eq!(fault.class, ferry_proto::FaultClass::Precondition, "{fault}");
    assert!(fault.to_string().contains("backup"), "{fault}");
    assert_eq!(server.text(WAITING).await, "0", "nothing of it waits any more");
    server.connect("shop", Some("pw")).await.expect("let in still");
    backup.query_drop("UNLOCK TABLES").await.expect("unlocks");
    engine.fence(&spec, &plan, Duration::ZERO).await.expect("fenced");
    assert!(server.connect("shop", Some("pw")).await.is_err(), "logins are refused");
}

/// A backup that has locked all tables.
async fn backup(server: &Maria) -> mysql_async::Conn {
    let mut backup = server.root().await;
    backup.query_drop("FLUSH TABLES WITH READ LOCK").await.expect("locks");
    backup
}

/// How many statements on users run or wait.
const WAITING: &str =
    "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE INFO LIKE 'ALTER USER%'";

#[tokio::test(flavor = "multi_thread")]
async fn a_fence_that_was_cut_short_does_not_close_after_its_undoing() {
    let server = Maria::start();
    server.run(SHOP).await;
    let (engine, spec) = (server.engine(), shop());
    let mut backup = backup(&server).await;
    let plan = engine.plan_fence(&spec).await.expect("planned");
    // As at its deadline, or by an agent that died: whoever asked has gone, and the server waits on.
    let until_it_waits = async {
        while server.text(WAITING).await != "1" {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        fenced = engine.fence(&spec, &plan, Duration::ZERO) => panic!("{fenced:?}"),
        () = until_it_waits => {}
    }
    let mut undoing = Box::pin(engine.unfence(&spec, &plan));
    let until_it_waits = async {
        while server.text(&WAITING.replace("USER%", "USER%UNLOCK")).await != "1" {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        undone = &mut undoing => panic!("{undone:?}"),
        () = until_it_waits => {}
    }
    assert_eq!(server.text(WAITING).await, "1", "what closes does not wait beside it");
    backup.query_drop("UNLOCK TABLES").await.expect("unlocks");
    undoing.await.expect("unfenced");
    server.connect("shop", Some("pw")).await.expect("let in again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_ends_within_the_grace_is_kept() {
    let server = Maria::start();
    server.run(SHOP).await;
    let (engine, spec) = (server.engine(), shop());
    let mut open = server.connect("shop", Some("pw")).await.expect("let in");
    open.query_drop("BEGIN").await.expect("begins");
    open.query_drop("INSERT INTO shop.t VALUES (1)").await.expect("writes");
    let plan = engine.plan_fence(&spec).await.expect("planned");
    let fencing = engine.fence(&spec, &plan, Duration::from_secs(20));
    let committing = async {
        let deadline = Instant::now() + Duration::from_secs(10);
        while server.connect("shop", Some("pw")).await.is_ok() {
            assert!(Instant::now() < deadline, "logins go on");
        }
        open.query_drop("COMMIT").await.expect("within the grace");
    };
    let start = Instant::now();
    let (fenced, ()) = tokio::join!(fencing, committing);
    fenced.expect("fenced");
    assert!(start.elapsed() < Duration::from_secs(15), "a quiet connection needs no grace");
    assert_eq!(server.text("SELECT COUNT(*) FROM shop.t").await, "1", "acknowledged is kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_or_foreign_is_named() {
    let server = Maria::start();
    server.run(SHOP).await;
    let engine = server.engine();
    let wanted = spec(&["shop", "lost"], &[("shop", "localhost"), ("nobody", "%")]);
    let fault = engine.inspect(&wanted).await.expect_err("things are missing");
    assert_eq!(fault.class, ferry_proto::FaultClass::Precondition);
    assert!(
        fault.message.contains("database lost") && fault.message.contains("nobody@%"),
        "{fault}"
    );
    server
        .run([
            "GRANT INSERT ON `sh%`.* TO bystander@localhost",
            "CREATE USER shop@'10.0.0.1'",
            "CREATE VIEW shop.v AS SELECT 1",
            // A user who is nowhere is not at the target either.
            "CREATE DEFINER = ghost@localhost PROCEDURE shop.p() SELECT 1",
            "GRANT PROCESS ON *.* TO shop@localhost",
            "GRANT SELECT ON mysql.* TO shop@localhost",
        ])
        .await;
    let facts = engine.inspect(&shop()).await.expect("inspected");
    let said: Vec<String> = facts.blockers().map(|f| f.message.clone()).collect();
    for part in [
        "bystander@localhost has rights in database shop",
        "shop@10.0.0.1 has the name",
        "view shop.v runs with the rights of root@localhost",
        "procedure shop.p runs with the rights of ghost@localhost",
    ] {
        assert!(said.iter().any(|m| m.contains(part)), "{part}: {said:?}");
    }
    let warned: Vec<&str> = facts.findings.iter().map(|f| f.message.as_str()).collect();
    for part in ["PROCESS", "\"mysql\", outside the account"] {
        assert!(warned.iter().any(|m| m.contains(part)), "{part}: {warned:?}");
    }
}

/// A fence locks the account's users: whoever else could write is in the way, and named.
#[tokio::test(flavor = "multi_thread")]
async fn who_could_write_through_a_fence_is_named() {
    let server = Maria::start();
    server.run(SHOP).await;
    let engine = server.engine();
    let quiet = engine.inspect(&shop()).await.expect("inspected").findings;
    assert_eq!(quiet, Vec::new(), "the server's own administrators need no word");
    let harmless = [
        // A role that only the account will have.
        "CREATE ROLE shop_role",
        "GRANT INSERT ON shop.* TO shop_role",
        // Locked, elsewhere, or for backups.
        "CREATE USER locked@localhost ACCOUNT LOCK",
        "GRANT ALL ON shop.* TO locked@localhost",
        "CREATE DATABASE other",
        "GRANT ALL ON other.* TO bystander@localhost",
        "CREATE USER backup@localhost",
        "GRANT SELECT, LOCK TABLES, SHOW VIEW, TRIGGER, EVENT, RELOAD, PROCESS ON *.* TO backup@localhost",
    ];
    server.run(harmless).await;
    let quiet = engine.inspect(&shop()).await.expect("inspected").findings;
    assert_eq!(quiet, Vec::new());
    server.run(["GRANT shop_role TO shop@localhost"]).await;
    let facts = engine.inspect(&shop()).await.expect("inspected");
    assert_eq!(facts.blockers().count(), 0, "{:?}", facts.findings);
    for (change, undo, part) in [
        (
            "GRANT INSERT ON shop.* TO PUBLIC",
            "REVOKE INSERT ON shop.* FROM PUBLIC",
            "everybody on the server (PUBLIC) has rights in database shop",
        ),
        (
            "GRANT UPDATE ON *.* TO PUBLIC",
            "REVOKE UPDATE ON *.* FROM PUBLIC",
            "everybody on the server (PUBLIC) may write in every database",
        ),
        (
            "GRANT INSERT ON shop.t TO ''@localhost IDENTIFIED BY ''",
            "DROP USER ''@localhost",
            "the anonymous user ''@localhost has rights in database shop",
        ),
        (
            "GRANT DELETE ON *.* TO bystander@localhost",
            "REVOKE DELETE ON *.* FROM bystander@localhost",
            "bystander@localhost may write in every database",
        ),
        (
            "GRANT UPDATE (a) ON shop.t TO bystander@localhost",
            "REVOKE UPDATE (a) ON shop.t FROM bystander@localhost",
            "bystander@localhost has rights in database shop",
        ),
        (
            "GRANT shop_role TO bystander@localhost",
            "REVOKE shop_role FROM bystander@localhost",
            "bystander@localhost has rights in database shop",
        ),
        (
            "CREATE DEFINER = shop@localhost EVENT other.e ON SCHEDULE EVERY 1 DAY DO INSERT INTO shop.t VALUES (1)",
            "DROP EVENT other.e",
            "event other.e runs with the rights of shop@localhost",
        ),
    ] {
        server.run([change]).await;
        let facts = engine.inspect(&shop()).await.expect("inspected");
        let said: Vec<String> = facts.blockers().map(|f| f.message.clone()).collect();
        assert!(said.len() == 1 && said[0].contains(part), "{change}: {said:?}");
        server.run([undo]).await;
    }
    server
        .run([
            "GRANT SELECT ON shop.* TO bystander@localhost",
            "GRANT ALL ON *.* TO chief@'%' IDENTIFIED BY 'c'",
        ])
        .await;
    let facts = engine.inspect(&shop()).await.expect("inspected");
    assert_eq!(facts.blockers().count(), 0, "{:?}", facts.findings);
    for part in
        ["bystander@localhost has rights in database shop", "administrators of the server: chief@%"]
    {
        let warned = |f: &&ferry_databases::Finding| f.message.contains(part);
        let found = facts.findings.iter().find(warned).unwrap_or_else(|| panic!("{part}"));
        assert_eq!(found.level, ferry_databases::Level::Warning);
    }
}

/// MariaDB decides about logins from memory, and changes users by its tables, which a full disk may have damaged.
#[tokio::test(flavor = "multi_thread")]
async fn a_user_that_cannot_be_let_in_again_is_told_and_one_that_is_gone_is_not() {
    let server = Maria::start();
    server.run(SHOP).await;
    let (engine, spec) = (server.engine(), shop());
    let plan = engine.plan_fence(&spec).await.expect("planned");
    engine.fence(&spec, &plan, Duration::ZERO).await.expect("fenced");
    server.run(["DELETE FROM mysql.global_priv WHERE User = 'shop'"]).await;
    let fault = engine.unfence(&spec, &plan).await.expect_err("still locked");
    assert!(fault.to_string().contains("cannot be let in again"), "{fault}");
    server.run(["FLUSH PRIVILEGES"]).await;
    engine.unfence(&spec, &plan).await.expect("its owner dropped it");
}
