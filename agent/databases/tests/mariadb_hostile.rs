//! A dump or a record from a hostile server: nothing outside the account is touched.

mod support;

use ferry_databases::{Engine, Existing, FenceRecord, Provisioned, Record, Spec};
use ferry_proto::{Fault, FaultClass};
use serde_json::json;
use support::frames::Stream;
use support::mariadb::{Maria, spec};
use support::{differences, transfer};

const SHOP: &[&str] = &[
    "CREATE DATABASE shop",
    "CREATE USER shop@localhost IDENTIFIED BY 'pw'",
    "GRANT ALL ON shop.* TO shop@localhost",
    "CREATE TABLE shop.t (id int PRIMARY KEY, a varchar(20), f float)",
    "INSERT INTO shop.t VALUES (1, 'one', 0.1), (2, 'two', 16777216)",
    "CREATE TABLE shop.big (b longblob)",
    "INSERT INTO shop.big SELECT REPEAT('x', 100000) FROM information_schema.COLLATIONS LIMIT 20",
    "CREATE SEQUENCE shop.s",
];

fn shop() -> Spec {
    spec(&["shop"], &[("shop", "localhost")])
}

async fn closed(engine: &dyn Engine) -> Record {
    let source = Maria::start();
    source.run(SHOP).await;
    let record = source.engine().record(&shop(), None).await.expect("recorded");
    engine.provision(&shop(), &record, Existing::Refuse).await.expect("provisioned");
    record
}

async fn load(engine: &dyn Engine, record: &Record, stream: &[u8]) -> Result<(), Fault> {
    let mut input = stream;
    engine.load(&shop(), record, &"shop".parse().expect("a name"), &mut input, &|_| ()).await?;
    Ok(())
}

fn facts() -> serde_json::Value {
    json!({"engine": "mariadb", "version": "x", "database": "shop", "character_set_collations": ""})
}

fn object(kind: &str, tail: &str) -> serde_json::Value {
    let hex: String = tail.bytes().map(|b| format!("{b:02X}")).collect();
    json!({"kind": kind, "name": "x", "definer": ["shop", "localhost"], "sql_mode": "", "charset": "utf8mb4",
        "collation": "utf8mb4_general_ci", "database_collation": "", "algorithm": "", "security": "",
        "aggregate": false, "tail": hex, "schedule": null})
}

/// What the text of a dump could try.
fn hostile_texts(file: &str) -> Vec<String> {
    // The server's own right, and of nobody's interest: where it ends with the test.
    let (directory, _) = file.rsplit_once('/').expect("an absolute path");
    vec![
        format!("\\! touch {file}\n"),
        format!("system touch {file}\n"),
        format!("SELECT 1;\n\\! touch {file}\nSELECT * FROM nothing;\n"),
        format!("tee {file}\nSELECT 1;\n"),
        format!("\\T {file}\nSELECT 1;\n"),
        format!("pager cat > {file}\nSELECT 1;\n"),
        format!("\\P cat > {file}\nSELECT 1;\n"),
        format!("/*! \\! touch {file} */;\n"),
        format!("DELIMITER //\nSELECT 1//\n\\! touch {file}\n//\n"),
        "source /etc/passwd\n".to_owned(),
        "\\. /etc/passwd\n".to_owned(),
        "edit\n".to_owned(),
        "connect other\n".to_owned(),
        format!("SELECT 'x' INTO DUMPFILE '{file}';\n"),
        "LOAD DATA LOCAL INFILE '/etc/hostname' INTO TABLE other.t;\n".to_owned(),
        "CREATE TABLE l (a text); LOAD DATA LOCAL INFILE '/etc/passwd' INTO TABLE l;\n".to_owned(),
        "INSTALL SONAME 'auth_pam';\n".to_owned(),
        "CREATE FUNCTION x RETURNS STRING SONAME 'x.so';\n".to_owned(),
        "CREATE TABLE c (a int) ENGINE = CONNECT TABLE_TYPE = CSV FILE_NAME = '/etc/passwd';\n".to_owned(),
        format!("CREATE TABLE d (a int) DATA DIRECTORY = '{directory}'; SELECT * FROM nothing;\n"),
        format!("SELECT 1 INTO OUTFILE '{file}';\n"),
        "LOAD DATA LOCAL INFILE '/etc/passwd' INTO TABLE t;\n".to_owned(),
        "LOAD DATA INFILE '/etc/passwd' INTO TABLE t;\n".to_owned(),
        "CREATE USER intruder@localhost IDENTIFIED BY 'x';\n".to_owned(),
        "GRANT ALL ON *.* TO shop@localhost;\n".to_owned(),
        "INSERT INTO other.t VALUES (2);\n".to_owned(),
        "USE other;\n".to_owned(),
        "CREATE DEFINER = root@localhost PROCEDURE p() DROP DATABASE other;\n".to_owned(),
        "CREATE DEFINER = root@localhost EVENT e ON SCHEDULE EVERY 1 SECOND DO DROP DATABASE other;\n".to_owned(),
        "SET GLOBAL general_log = ON;\n".to_owned(),
        "DROP DATABASE other;\n".to_owned(),
        "SELECT * FROM mysql.global_priv;\n".to_owned(),
        "ALTER EVENT".to_owned(),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_dump_reaches_nothing_outside_the_account() {
    let server = Maria::start();
    let engine = server.engine();
    let record = closed(&*engine).await;
    server
        .run([
            "CREATE DATABASE other",
            "CREATE TABLE other.t (a int)",
            "INSERT INTO other.t VALUES (1)",
        ])
        .await;
    let marker = server.dir.path().join("marker");
    std::fs::set_permissions(
        server.dir.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o777),
    )
    .expect("opens it");
    let users = "SELECT User, Host, Priv FROM mysql.global_priv ORDER BY 1, 2";
    let before = server.text(users).await;
    let file = marker.display();
    for sql in hostile_texts(&file.to_string()) {
        let stream = Stream::new(&facts()).sql(&sql).end();
        let fault = load(&*engine, &record, &stream).await.expect_err(&sql);
        assert_eq!(fault.class, FaultClass::Permanent, "{sql}: {fault}");
    }
    for (what, object) in [
        ("statement", object("procedure", " p() SELECT 1; CREATE USER intruder@localhost")),
        ("definer", {
            let mut o = object("procedure", " p() SELECT 1");
            o["definer"] = json!(["root", "localhost"]);
            o
        }),
        ("setting", {
            let mut o = object("procedure", " p() SELECT 1");
            o["charset"] = json!("utf8mb4, GLOBAL general_log = ON");
            o
        }),
        ("security", {
            let mut o = object("view", " v AS SELECT 1");
            o["security"] = json!("DEFINER DEFINER = root@localhost");
            o
        }),
        ("database", object("procedure", " other.p() SELECT 1")),
        ("view", object("view", " v AS SELECT * FROM other.t")),
        ("event", object("event", "DROP DATABASE other")),
    ] {
        let stream = Stream::new(&facts()).sql("SELECT 1;\n").object(&object).end();
        load(&*engine, &record, &stream).await.expect_err(what);
    }
    assert!(!marker.exists(), "the client ran something");
    assert_eq!(server.text("SELECT COUNT(*) FROM other.t").await, "1");
    assert_eq!(server.text(users).await, before, "and nobody was left behind");
    assert_eq!(server.text("SELECT @@general_log").await, "0");
    assert_eq!(
        server.text("SHOW PROCEDURE STATUS WHERE Definer LIKE 'root%' AND Db <> 'sys'").await,
        ""
    );
}

/// A peer names the database: its grant is for one account, whose databases are all that it may know of.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_told_of_a_database_that_is_not_the_accounts() {
    let server = Maria::start();
    server.run(SHOP).await;
    server.run(["CREATE DATABASE other", "CREATE TABLE other.t (a int)"]).await;
    let engine = server.engine();
    for name in ["other", "mysql", "information_schema"] {
        let name = name.parse().expect("a name");
        let told = engine.manifest(&shop(), &name).await.map(|_| ());
        let mut stream = Vec::new();
        let dumped = engine.dump(&shop(), &name, &mut stream, &|_| ()).await.map(|_| ());
        for fault in [told, dumped].map(|answer| answer.expect_err("a stranger's database")) {
            assert_eq!(fault.class, FaultClass::Permanent, "{fault}");
            assert!(fault.message.contains("is not of the account shop"), "{fault}");
        }
        assert!(stream.is_empty(), "{name}");
    }
}

/// A server may be told to write its log now and then, whoever commits and whoever asks for it.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_loaded_outlives_a_server_that_lets_its_log_wait() {
    let lazy = ["--innodb-flush-log-at-trx-commit=0", "--innodb-flush-log-at-timeout=2"];
    let (a, mut b) = (Maria::start(), Maria::start_with(&lazy));
    a.run(SHOP).await;
    let (source, target) = (a.engine(), b.engine());
    let record = source.record(&shop(), None).await.expect("recorded");
    target.provision(&shop(), &record, Existing::Refuse).await.expect("provisioned");
    let mut stream = Vec::new();
    source
        .dump(&shop(), &"shop".parse().expect("a name"), &mut stream, &|_| ())
        .await
        .expect("dumped");
    load(&*target, &record, &stream).await.expect("loaded");
    b.crash(&lazy);
    assert_eq!(differences(&*source, &*target, &shop()).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_load_is_repeated_and_a_change_is_noticed() {
    let (a, b) = (Maria::start(), Maria::start());
    a.run(SHOP).await;
    let (source, target) = (a.engine(), b.engine());
    let record = source.record(&shop(), None).await.expect("recorded");
    target.provision(&shop(), &record, Existing::Refuse).await.expect("provisioned");
    let mut stream = Vec::new();
    let database = "shop".parse().expect("a name");
    source.dump(&shop(), &database, &mut stream, &|_| ()).await.expect("dumped");
    // Binary values are written with two characters a byte.
    a.text("ANALYZE TABLE shop.t, shop.big").await;
    let sizes = source.dump_sizes(&shop()).await.expect("estimated");
    assert_eq!(sizes.len(), 1);
    let length = stream.len() as u64;
    assert!((length / 4..length * 2).contains(&sizes[0]), "{sizes:?} for {length}");
    // Broken off: a lost link, then a killed agent, whose work is dropped where it stands.
    let fault = load(&*target, &record, &stream[..stream.len() / 2]).await.expect_err("broken off");
    assert_eq!(fault.class, FaultClass::Transient, "{fault}");
    let (mut near, mut far) = tokio::io::duplex(1024);
    let spec = shop();
    let cut = tokio::time::timeout(
        std::time::Duration::from_millis(600),
        target.load(&spec, &record, &database, &mut far, &|_| ()),
    );
    let feed = async {
        let _ = tokio::io::AsyncWriteExt::write_all(&mut near, &stream[..stream.len() / 2]).await;
        std::future::pending::<()>().await;
    };
    tokio::select! { outcome = cut => assert!(outcome.is_err()), () = feed => {} }
    load(&*target, &record, &stream).await.expect("loaded after all");
    load(&*target, &record, &stream).await.expect("and once more");
    b.plant("shop", "t.TRG~");
    b.plant("shop", "notes.txt");
    let fault = load(&*target, &record, &stream).await.expect_err("somebody's file");
    assert_eq!(fault.class, FaultClass::Precondition, "{fault}");
    assert_eq!(fault.causes, ["notes.txt"], "{fault}");
    std::fs::remove_file(b.data().join("shop/notes.txt")).expect("taken away");
    load(&*target, &record, &stream).await.expect("in place of what a cut has left");
    let flushed = b.text("SHOW GLOBAL STATUS LIKE 'Com_flush'").await;
    load(&*target, &record, &stream).await.expect("and again");
    assert_ne!(b.text("SHOW GLOBAL STATUS LIKE 'Com_flush'").await, flushed, "and synced");
    assert_eq!(differences(&*source, &*target, &shop()).await, Vec::<String>::new());
    for (change, object) in [
        ("UPDATE shop.t SET a = 'One' WHERE id = 1", "table t, checksum"),
        ("UPDATE shop.t SET a = 'one', f = 0.10000001 WHERE id = 1", "table t, checksum"),
        ("INSERT INTO shop.big VALUES ('')", "table big, rows"),
        ("SELECT NEXTVAL(shop.s)", "sequence s, next value"),
        ("ALTER TABLE shop.t ADD KEY (a)", "table t, index a"),
        ("GRANT SELECT ON shop.t TO shop@localhost", "user shop@localhost, grant on"),
    ] {
        b.run([change]).await;
        let found = differences(&*source, &*target, &shop()).await;
        assert!(found.iter().any(|d| d.starts_with(object)), "{change}: {found:?}");
        load(&*target, &record, &stream).await.expect("loaded again");
        b.run(["REVOKE ALL PRIVILEGES, GRANT OPTION FROM shop@localhost"]).await;
        target.provision(&shop(), &record, Existing::Refuse).await.expect("provisioned again");
        assert_eq!(
            differences(&*source, &*target, &shop()).await,
            Vec::<String>::new(),
            "{change}"
        );
    }
    b.run(["UPDATE shop.t SET f = 16777217 WHERE id = 2"]).await;
    assert_eq!(
        differences(&*source, &*target, &shop()).await,
        Vec::<String>::new(),
        "the same float"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn taken_names_are_refused_and_undo_takes_only_its_own() {
    let (a, b) = (Maria::start(), Maria::start());
    a.run(SHOP).await;
    let (source, target) = (a.engine(), b.engine());
    let record = source.record(&shop(), None).await.expect("recorded");
    b.run(["CREATE DATABASE shop", "CREATE TABLE shop.theirs (a int)"]).await;
    let state = "SELECT User, Host, Priv FROM mysql.global_priv ORDER BY 1, 2";
    let before = b.text(state).await;
    let fault = target.provision(&shop(), &record, Existing::Refuse).await.expect_err("taken");
    assert_eq!(fault.class, FaultClass::Precondition);
    assert!(fault.message.contains("database shop exists"), "{fault}");
    assert_eq!(b.text(state).await, before, "nothing was changed");
    target.deprovision(&shop(), &Provisioned::all_of(&shop())).await.expect("undone");
    assert_eq!(b.text("SHOW TABLES FROM shop").await, "theirs", "undo takes nothing of theirs");
    b.run(["DROP DATABASE shop", "CREATE USER shop@localhost"]).await;
    let fault = target.provision(&shop(), &record, Existing::Refuse).await.expect_err("taken");
    assert!(fault.message.contains("shop@localhost exists"), "{fault}");
    b.run(["DROP USER shop@localhost"]).await;
    let created = target.provision(&shop(), &record, Existing::Refuse).await.expect("provisioned");
    let again = target.provision(&shop(), &record, Existing::Refuse).await.expect("repeated");
    assert_eq!(created, again);
    transfer(&*source, &*target, &shop(), &record).await.expect("transferred");
    target.deprovision(&shop(), &created).await.expect("undone");
    target.deprovision(&shop(), &created).await.expect("undone twice");
    assert_eq!(b.text(state).await, before);
    assert_eq!(b.text("SHOW DATABASES LIKE 'shop'").await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_has_served_is_dropped_once_it_is_closed() {
    let (a, b) = (Maria::start(), Maria::start());
    a.run(SHOP).await;
    let (source, target) = (a.engine(), b.engine());
    let state = "SELECT User, Host, Priv FROM mysql.global_priv ORDER BY 1, 2";
    let before = b.text(state).await;
    let record = source.record(&shop(), None).await.expect("recorded");
    let created = target.provision(&shop(), &record, Existing::Refuse).await.expect("provisioned");
    transfer(&*source, &*target, &shop(), &record).await.expect("transferred");
    target.open(&shop(), &record).await.expect("opened");
    let fault = target.drop_closed(&shop(), &created).await.expect_err("is open");
    assert_eq!(fault.class, FaultClass::Fenced, "{fault}");
    assert_eq!(b.text("SELECT COUNT(*) FROM shop.t").await, "2", "nothing was dropped");
    let plan = target.plan_fence(&shop()).await.expect("planned");
    target.fence(&shop(), &plan, std::time::Duration::ZERO).await.expect("fenced");
    target.deprovision(&shop(), &created).await.expect("no undo of what has served");
    target.drop_closed(&shop(), &Provisioned::default()).await.expect("not ours to drop");
    assert_eq!(b.text("SELECT COUNT(*) FROM shop.t").await, "2", "was not created by Ferry");
    // As a power cut leaves it while a trigger is made.
    b.plant("shop", "t.TRG~");
    b.plant("shop", "checked.TRN");
    // Cut off between databases and users.
    let half = Provisioned { users: std::collections::BTreeSet::new(), ..created.clone() };
    target.drop_closed(&shop(), &half).await.expect("dropped");
    target.drop_closed(&shop(), &created).await.expect("and the rest");
    target.drop_closed(&shop(), &created).await.expect("repeated");
    assert_eq!(b.text(state).await, before);
    assert_eq!(b.text("SHOW DATABASES LIKE 'shop'").await, "");
    target.provision(&shop(), &record, Existing::Refuse).await.expect("the names are free again");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_comes_back_to_its_fenced_copy() {
    let (a, b) = (Maria::start(), Maria::start());
    a.run(SHOP).await;
    let (home, away) = (a.engine(), b.engine());
    let plan = home.plan_fence(&shop()).await.expect("planned");
    let grace = std::time::Duration::ZERO;
    home.fence(&shop(), &plan, grace).await.expect("fenced");
    let record = home.record(&shop(), Some(&plan)).await.expect("recorded");
    away.provision(&shop(), &record, Existing::Refuse).await.expect("provisioned");
    transfer(&*home, &*away, &shop(), &record).await.expect("there");
    away.open(&shop(), &record).await.expect("opened");
    b.run([
        "INSERT INTO shop.t VALUES (3, 'away', 1)",
        "SET PASSWORD FOR shop@localhost = PASSWORD('new')",
    ])
    .await;
    // Both ends are the account's; only the fenced one may be replaced.
    let open = home.check_target(&shop(), &record, Existing::Replace).await.expect("checked");
    assert!(open.is_empty(), "{open:?}");
    let fault = away.provision(&shop(), &record, Existing::Replace).await.expect_err("is open");
    assert!(fault.message.contains("can log in"), "{fault}");
    let back: FenceRecord = away.plan_fence(&shop()).await.expect("planned");
    away.fence(&shop(), &back, grace).await.expect("fenced");
    let record = away.record(&shop(), Some(&back)).await.expect("recorded");
    let created = home.provision(&shop(), &record, Existing::Replace).await.expect("provisioned");
    assert_eq!(created, Provisioned::default(), "an undo would drop nothing");
    transfer(&*away, &*home, &shop(), &record).await.expect("back");
    assert_eq!(differences(&*away, &*home, &shop()).await, Vec::<String>::new());
    home.rehearse(&shop(), &record).await.expect("rehearsed");
    home.open(&shop(), &record).await.expect("opened");
    a.connect("shop", Some("new")).await.expect("with the password of meanwhile");
    assert_eq!(a.text("SELECT COUNT(*) FROM shop.t").await, "3");
}
