//! The fence of PostgreSQL: denial by the server itself, transactions gone; and back.

mod support;

use std::time::{Duration, Instant};

use support::postgresql::{Postgres, spec};

const CLUSTER: &str = "
CREATE ROLE shop LOGIN PASSWORD 'pw';
CREATE ROLE off NOLOGIN;
CREATE ROLE bystander LOGIN PASSWORD 'b';
CREATE DATABASE shop OWNER shop CONNECTION LIMIT 9;
CREATE DATABASE other OWNER bystander;
";

fn start() -> (Postgres, ferry_databases::Spec) {
    let server = Postgres::start();
    server.run("postgres", CLUSTER);
    server.run("shop", "SET ROLE shop; CREATE TABLE t (a int); GRANT ALL ON t TO PUBLIC");
    (server, spec(&["shop"], &["shop", "off"]))
}

const STATE: &str = "SELECT rolname, rolcanlogin, rolpassword FROM pg_authid WHERE rolname !~ '^pg_' ORDER BY 1; \
     SELECT datname, datconnlimit, datacl FROM pg_database ORDER BY 1";

#[tokio::test(flavor = "multi_thread")]
async fn logins_are_refused_and_transactions_end() {
    let (server, spec) = start();
    let engine = server.engine();
    assert!(!engine.is_fenced(&spec).await.expect("asked"));
    let before = server.run("postgres", STATE);
    let open = server.connect("shop", "pw", "shop").await.expect("let in");
    open.batch_execute("BEGIN; INSERT INTO t VALUES (1)").await.expect("writes");
    let visitor = server.connect("bystander", "b", "shop").await.expect("let in");
    visitor.batch_execute("BEGIN; INSERT INTO t VALUES (2)").await.expect("writes");
    let bystander = server.connect("bystander", "b", "other").await.expect("let in");

    let plan = engine.plan_fence(&spec).await.expect("planned");
    let start = Instant::now();
    engine.fence(&spec, &plan, Duration::from_millis(700)).await.expect("fenced");
    assert!(start.elapsed() >= Duration::from_millis(700), "an open transaction gets its grace");
    open.batch_execute("COMMIT").await.expect_err("its connection was ended");
    visitor.batch_execute("COMMIT").await.expect_err("whoever else writes there too");
    assert_eq!(server.run("shop", "SELECT count(*) FROM t"), "0", "and it is rolled back");
    server.connect("shop", "pw", "shop").await.expect_err("logins are refused");
    server.connect("shop", "pw", "other").await.expect_err("everywhere");
    server.connect("bystander", "b", "shop").await.expect_err("others are kept out of it");
    bystander.batch_execute("SELECT 1").await.expect("and else left alone");
    assert!(engine.is_fenced(&spec).await.expect("asked"));
    engine.fence(&spec, &plan, Duration::ZERO).await.expect("again");

    engine.unfence(&spec, &plan).await.expect("unfenced");
    engine.unfence(&spec, &plan).await.expect("again");
    assert_eq!(server.run("postgres", STATE), before, "exactly as it was");
    server.connect("shop", "pw", "shop").await.expect("let in again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_whose_dropping_was_cut_off_is_closed_and_stops_no_fence() {
    let (server, _) = start();
    let (engine, spec) = (server.engine(), spec(&["shop", "other"], &["shop"]));
    let open = engine.plan_fence(&spec).await.expect("planned");
    let before = server.run("postgres", STATE);
    server.half_drop("other");
    let half = engine.plan_fence(&spec).await.expect("planned");
    engine.fence(&spec, &half, Duration::ZERO).await.expect("fenced");
    assert!(engine.is_fenced(&spec).await.expect("asked"));
    // It was whole when this fence was planned.
    engine.unfence(&spec, &open).await.expect("unfenced");
    assert!(!engine.is_fenced(&spec).await.expect("asked"));
    server.run("postgres", "UPDATE pg_database SET datconnlimit = -1 WHERE datname = 'other'");
    assert_eq!(server.run("postgres", STATE), before, "all else is as it was");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_ends_within_the_grace_is_kept() {
    let (server, spec) = start();
    let engine = server.engine();
    let open = server.connect("shop", "pw", "shop").await.expect("let in");
    open.batch_execute("BEGIN; INSERT INTO t VALUES (1)").await.expect("writes");
    let plan = engine.plan_fence(&spec).await.expect("planned");
    let fencing = engine.fence(&spec, &plan, Duration::from_secs(20));
    let committing = async {
        let deadline = Instant::now() + Duration::from_secs(10);
        while server.connect("shop", "pw", "shop").await.is_ok() {
            assert!(Instant::now() < deadline, "logins go on");
        }
        open.batch_execute("COMMIT").await.expect("within the grace");
    };
    let start = Instant::now();
    let (fenced, ()) = tokio::join!(fencing, committing);
    fenced.expect("fenced");
    assert!(start.elapsed() < Duration::from_secs(15), "a quiet connection needs no grace");
    assert_eq!(server.run("shop", "SELECT count(*) FROM t"), "1", "acknowledged is kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_or_foreign_is_named() {
    let (server, _) = start();
    let engine = server.engine();
    let fault =
        engine.inspect(&spec(&["shop", "lost"], &["shop", "nobody"])).await.expect_err("missing");
    assert_eq!(fault.class, ferry_proto::FaultClass::Precondition);
    assert!(fault.message.contains("database lost, role nobody"), "{fault}");
    server.run(
        "shop",
        "CREATE EXTENSION dblink; CREATE TABLE theirs (a int); CREATE FUNCTION c() RETURNS int LANGUAGE internal AS 'pg_backend_pid'; \
         ALTER ROLE shop CREATEDB; GRANT pg_monitor TO shop; ALTER ROLE shop SET log_statement = 'all'; \
         BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'half'",
    );
    let facts = engine.inspect(&spec(&["shop"], &["shop", "off"])).await.expect("inspected");
    let said: Vec<String> = facts.blockers().map(|f| f.message.clone()).collect();
    for part in [
        "dblink is not one",
        "shop.theirs belongs to postgres",
        "untrusted language shop.c",
        "\"half\"",
    ] {
        assert!(said.iter().any(|m| m.contains(part)), "{part}: {said:?}");
    }
    let warned: Vec<&str> = facts.findings.iter().map(|f| f.message.as_str()).collect();
    for part in ["CREATEDB", "pg_monitor", "log_statement"] {
        assert!(warned.iter().any(|m| m.contains(part)), "{part}: {warned:?}");
    }
    server.run("postgres", "ALTER ROLE shop SUPERUSER");
    let facts = engine.inspect(&spec(&["shop"], &["shop", "off"])).await.expect("inspected");
    assert!(facts.blockers().any(|f| f.message.contains("is a superuser")));
}

/// A fence keeps everybody but superusers out of the account's databases.
#[tokio::test(flavor = "multi_thread")]
async fn who_could_write_is_stopped_or_named() {
    let (server, spec) = start();
    let engine = server.engine();
    let quiet = engine.inspect(&spec).await.expect("inspected").findings;
    assert_eq!(quiet, Vec::new(), "the server's own superuser needs no word");
    server.run(
        "postgres",
        "GRANT pg_write_all_data TO bystander; GRANT CREATE ON DATABASE shop TO bystander; \
         CREATE ROLE chief SUPERUSER LOGIN; CREATE ROLE friend LOGIN PASSWORD 'f'; GRANT shop TO friend",
    );
    let facts = engine.inspect(&spec).await.expect("inspected");
    assert_eq!(facts.blockers().count(), 0, "{:?}", facts.findings);
    let warned: Vec<&str> = facts.findings.iter().map(|f| f.message.as_str()).collect();
    for part in ["superusers of the server: chief", "friend is a member of shop", "bystander"] {
        assert!(warned.iter().any(|m| m.contains(part)), "{part}: {warned:?}");
    }
    let plan = engine.plan_fence(&spec).await.expect("planned");
    engine.fence(&spec, &plan, Duration::ZERO).await.expect("fenced");
    for (role, password) in [("bystander", "b"), ("friend", "f"), ("shop", "pw")] {
        server.connect(role, password, "shop").await.expect_err("kept out");
    }
}
