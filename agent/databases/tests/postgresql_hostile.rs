//! A dump, a record or a database from a hostile account or server: nothing outside the account
//! is touched.

mod support;

use ferry_databases::{Engine, Existing, Provisioned, Record, Spec};
use ferry_proto::{Fault, FaultClass};
use serde_json::json;
use support::frames::Stream;
use support::postgresql::{Postgres, spec};
use support::{differences, transfer};

const CLUSTER: &str = "
CREATE ROLE shop LOGIN PASSWORD 'pw';
CREATE DATABASE shop OWNER shop;
";
const SHOP: &str = "
SET ROLE shop;
CREATE TABLE t (id int PRIMARY KEY, a text, f real);
INSERT INTO t VALUES (1, 'one', 0.1), (2, 'two', 16777216);
CREATE TABLE big (b text);
INSERT INTO big SELECT repeat('x', 10000) FROM generate_series(1, 200);
CREATE SEQUENCE s;
CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1';
";

fn shop() -> Spec {
    spec(&["shop"], &["shop"])
}

fn source() -> Postgres {
    let server = Postgres::start();
    server.run("postgres", CLUSTER);
    server.run("shop", SHOP);
    server
}

async fn load(engine: &dyn Engine, record: &Record, stream: &[u8]) -> Result<(), Fault> {
    let mut input = stream;
    engine.load(&shop(), record, &"shop".parse().expect("a name"), &mut input, &|_| ()).await?;
    Ok(())
}

const ROLES: &str = "SELECT rolname, rolsuper, rolcanlogin, rolcreaterole, rolpassword, rolconfig FROM pg_authid NATURAL JOIN pg_roles \
     WHERE rolname !~ '^pg_' ORDER BY 1; SELECT * FROM pg_auth_members ORDER BY 1, 2";

/// What the text of a dump could try.
fn hostile_texts(file: &str) -> Vec<String> {
    vec![
        format!("\\! touch {file}\n"),
        format!("SELECT 1 \\g {file}\n"),
        format!("\\o {file}\nSELECT 1;\n"),
        format!("\\o | cat > {file}\nSELECT 1;\n"),
        format!("SELECT 'touch {file}' \\gexec\n"),
        format!("CREATE TABLE x (a text);\n\\copy x TO PROGRAM 'touch {file}'\n"),
        "CREATE TABLE x (a text);\n\\copy x FROM '/etc/passwd'\n".to_owned(),
        "\\i /etc/passwd\n".to_owned(),
        "\\lo_import '/etc/passwd'\n".to_owned(),
        "\\setenv PGUSER postgres\n".to_owned(),
        "CREATE TABLE x (a text); COPY x FROM '/etc/passwd';\n".to_owned(),
        "SELECT lo_import('/etc/passwd');\n".to_owned(),
        "SELECT pg_ls_dir('/');\n".to_owned(),
        "LOAD 'auth_delay';\n".to_owned(),
        format!("COPY (SELECT 1) TO PROGRAM 'touch {file}';\n"),
        format!("CREATE TABLE x (a text); COPY x FROM PROGRAM 'touch {file}; echo';\n"),
        format!("COPY (SELECT 1) TO '{file}';\n"),
        format!("DO $$ BEGIN EXECUTE 'COPY (SELECT 1) TO ''{file}'''; END $$;\n"),
        format!("SELECT lo_export(lo_from_bytea(0, 'x'), '{file}');\n"),
        "\\connect other\n".to_owned(),
        "SELECT pg_read_file('/etc/passwd');\n".to_owned(),
        "CREATE ROLE intruder SUPERUSER LOGIN;\n".to_owned(),
        "ALTER ROLE shop SUPERUSER;\n".to_owned(),
        "ALTER ROLE shop PASSWORD 'x'; ALTER ROLE shop LOGIN;\n".to_owned(),
        "GRANT pg_execute_server_program TO shop;\n".to_owned(),
        "SET ROLE postgres;\nSELECT pg_read_file('/etc/passwd');\n".to_owned(),
        "SET SESSION AUTHORIZATION postgres;\nCREATE ROLE intruder;\n".to_owned(),
        "SET ROLE bystander; CREATE ROLE intruder;\n".to_owned(),
        "RESET SESSION AUTHORIZATION; CREATE ROLE intruder;\n".to_owned(),
        "CREATE EXTENSION file_fdw;\nCREATE SERVER s FOREIGN DATA WRAPPER file_fdw;\n".to_owned(),
        "ALTER SYSTEM SET log_statement = 'all';\n".to_owned(),
        "CREATE FUNCTION c() RETURNS int LANGUAGE c AS 'libc.so.6', 'getpid';\n".to_owned(),
        "CREATE FUNCTION e() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'; \
         CREATE EVENT TRIGGER e ON ddl_command_end EXECUTE FUNCTION e();\n"
            .to_owned(),
        "DROP DATABASE other;\n".to_owned(),
        "SELECT rolpassword FROM pg_authid;\n".to_owned(),
        "SELECT 1".to_owned(),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_dump_reaches_nothing_outside_the_account() {
    let (a, server) = (source(), Postgres::start());
    let engine = server.engine();
    let record = a.engine().record(&shop(), None).await.expect("recorded");
    server.run("postgres", "CREATE ROLE bystander LOGIN; CREATE DATABASE other OWNER bystander");
    engine.provision(&shop(), &record, Existing::Refuse).await.expect("provisioned");
    std::fs::set_permissions(
        server.dir.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o777),
    )
    .expect("opens it");
    let marker = server.dir.path().join("marker");
    let file = marker.display();
    let before = server.run("postgres", ROLES);
    for sql in hostile_texts(&file.to_string()) {
        let facts = json!({"engine": "postgresql", "version": "x", "database": "shop"});
        let stream = Stream::new(&facts).sql(&sql).end();
        let fault = load(&*engine, &record, &stream).await.expect_err(&sql);
        assert_eq!(fault.class, FaultClass::Permanent, "{sql}: {fault}");
    }
    assert!(!marker.exists(), "the client or the server wrote something");
    assert_eq!(server.run("postgres", ROLES), before, "roles are as they were, and none is left");
    server.connect("shop", "pw", "shop").await.expect_err("and the account is closed");
}

/// The account sets traps in its own database for whoever works on it as the superuser.
#[tokio::test(flavor = "multi_thread")]
async fn the_superuser_runs_nothing_of_the_accounts() {
    let (a, b) = (source(), Postgres::start());
    a.run(
        "shop",
        "SET ROLE shop; CREATE SCHEMA evil; CREATE TABLE evil.ran (who text); GRANT ALL ON evil.ran TO PUBLIC;
         CREATE FUNCTION evil.ran(what text) RETURNS text LANGUAGE plpgsql VOLATILE AS $$ BEGIN
           INSERT INTO evil.ran VALUES (session_user); RETURN what; END $$;
         CREATE FUNCTION evil.md5(text) RETURNS text LANGUAGE sql AS $$ SELECT evil.ran($1) $$;
         CREATE FUNCTION evil.count() RETURNS text LANGUAGE sql AS $$ SELECT evil.ran('1') $$;
         CREATE FUNCTION evil.concat_ws(text, VARIADIC text[]) RETURNS text LANGUAGE sql AS $$ SELECT evil.ran($1) $$;
         CREATE FUNCTION evil.pg_get_expr(pg_node_tree, oid) RETURNS text LANGUAGE sql AS $$ SELECT evil.ran('') $$;
         CREATE FUNCTION evil.eq(name, text) RETURNS bool LANGUAGE sql AS $$ SELECT evil.ran('') = '' $$;
         CREATE OPERATOR evil.= (LEFTARG = name, RIGHTARG = text, FUNCTION = evil.eq);
         CREATE VIEW evil.pg_class AS SELECT evil.ran('') AS relname;
         CREATE VIEW evil.v AS SELECT evil.ran('x') AS x;
         CREATE FUNCTION evil.fixed() RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN
           PERFORM evil.ran(''); RETURN 1; END $$;
         CREATE VIEW evil.w AS SELECT 1 AS a WHERE evil.fixed() = 1;
         ALTER DATABASE shop SET search_path = evil, pg_catalog, public;
         ALTER DATABASE shop SET standard_conforming_strings = off;
         ALTER DATABASE shop SET role = 'shop';
         ALTER DATABASE shop SET default_transaction_read_only = on;
         ALTER DATABASE shop SET statement_timeout = '1ms'",
    );
    let (source, target) = (a.engine(), b.engine());
    source.inspect(&shop()).await.expect("inspected");
    let plan = source.plan_fence(&shop()).await.expect("planned");
    source.fence(&shop(), &plan, std::time::Duration::ZERO).await.expect("fenced");
    let record = source.record(&shop(), Some(&plan)).await.expect("recorded");
    target.provision(&shop(), &record, Existing::Refuse).await.expect("provisioned");
    transfer(&*source, &*target, &shop(), &record).await.expect("transferred");
    assert_eq!(differences(&*source, &*target, &shop()).await, Vec::<String>::new());
    target.rehearse(&shop(), &record).await.expect("rehearsed");
    target.open(&shop(), &record).await.expect("opened");
    let ran = "SET statement_timeout = 0; SET search_path = pg_catalog; RESET ROLE; SELECT DISTINCT who FROM evil.ran";
    for (server, end) in [(&a, "source"), (&b, "target")] {
        assert_eq!(server.run("shop", ran), "", "at the {end}");
    }
}

/// A peer names the database: its grant is for one account, whose databases are all that it may know of.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_told_of_a_database_that_is_not_the_accounts() {
    let server = source();
    server.run("postgres", "CREATE DATABASE other");
    let engine = server.engine();
    for name in ["other", "postgres", "template1"] {
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

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_load_is_repeated_and_a_change_is_noticed() {
    let (a, b) = (source(), Postgres::start());
    let (source, target, spec) = (a.engine(), b.engine(), shop());
    let record = source.record(&spec, None).await.expect("recorded");
    target.provision(&spec, &record, Existing::Refuse).await.expect("provisioned");
    let mut stream = Vec::new();
    let database = "shop".parse().expect("a name");
    source.dump(&spec, &database, &mut stream, &|_| ()).await.expect("dumped");
    // What repeats itself is kept in less than it is.
    let sizes = source.dump_sizes(&spec).await.expect("estimated");
    assert!(sizes.len() == 1 && (8192..=stream.len() as u64).contains(&sizes[0]), "{sizes:?}");
    // Broken off: a lost link, then a killed agent, whose work is dropped where it stands.
    let fault = load(&*target, &record, &stream[..stream.len() / 2]).await.expect_err("broken off");
    assert_eq!(fault.class, FaultClass::Transient, "{fault}");
    let (mut near, mut far) = tokio::io::duplex(1024);
    let cut = tokio::time::timeout(
        std::time::Duration::from_millis(700),
        target.load(&spec, &record, &database, &mut far, &|_| ()),
    );
    let feed = async {
        let _ = tokio::io::AsyncWriteExt::write_all(&mut near, &stream[..stream.len() / 2]).await;
        std::future::pending::<()>().await;
    };
    tokio::select! { outcome = cut => assert!(outcome.is_err()), () = feed => {} }
    load(&*target, &record, &stream).await.expect("loaded after all");
    load(&*target, &record, &stream).await.expect("and once more");
    b.half_drop("shop");
    load(&*target, &record, &stream).await.expect("in place of what nobody can enter any more");
    assert_eq!(differences(&*source, &*target, &spec).await, Vec::<String>::new());
    for (change, object) in [
        ("UPDATE t SET a = 'One' WHERE id = 1", "relation public.t, checksum"),
        ("UPDATE t SET f = 0.1000001 WHERE id = 1", "relation public.t, checksum"),
        ("INSERT INTO big VALUES ('')", "relation public.big, rows"),
        ("SELECT nextval('s')", "relation public.s, is called"),
        ("CREATE INDEX ON t (a)", "relation public.t, index t_a_idx"),
        ("GRANT SELECT ON t TO PUBLIC", "relation public.t, rights of everybody"),
        (
            "CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 2'",
            "routine public.f(), body",
        ),
        ("SELECT lo_create(5)", "large objects, count"),
    ] {
        b.run("shop", &format!("BEGIN; {change}; COMMIT"));
        let found = differences(&*source, &*target, &spec).await;
        assert!(found.iter().any(|d| d.starts_with(object)), "{change}: {found:?}");
    }
    load(&*target, &record, &stream).await.expect("loaded again");
    assert_eq!(differences(&*source, &*target, &spec).await, Vec::<String>::new());
    let left = b.run("postgres", "SELECT datname FROM pg_database WHERE datname LIKE 'ferry%' UNION SELECT rolname FROM pg_roles WHERE rolname LIKE 'ferry%'");
    assert_eq!(left, "");
}

/// The server goes on creating a database for a client that is gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_load_cut_off_at_any_moment_is_repeated() {
    let (a, b) = (source(), Postgres::start());
    let (source, target, spec) = (a.engine(), b.engine(), shop());
    let record = source.record(&spec, None).await.expect("recorded");
    target.provision(&spec, &record, Existing::Refuse).await.expect("provisioned");
    let mut stream = Vec::new();
    let database = "shop".parse().expect("a name");
    source.dump(&spec, &database, &mut stream, &|_| ()).await.expect("dumped");
    load(&*target, &record, &stream).await.expect("loaded");
    for cut in (10..400).step_by(20) {
        let limit = std::time::Duration::from_millis(cut);
        let loading = load(&*target, &record, &stream);
        if let Ok(loaded) = tokio::time::timeout(limit, loading).await {
            loaded.expect("not in the way of itself");
        }
    }
    load(&*target, &record, &stream).await.expect("loaded");
    assert_eq!(differences(&*source, &*target, &spec).await, Vec::<String>::new());
}

/// Whoever loads is let in for that alone: a copy that was cut off is as closed as one that was loaded.
#[tokio::test(flavor = "multi_thread")]
async fn a_load_that_is_cut_off_leaves_the_copy_closed() {
    let (a, b) = (source(), Postgres::start());
    let (source, target, spec) = (a.engine(), b.engine(), shop());
    let record = source.record(&spec, None).await.expect("recorded");
    let created = target.provision(&spec, &record, Existing::Refuse).await.expect("provisioned");
    let mut stream = Vec::new();
    let database = "shop".parse().expect("a name");
    source.dump(&spec, &database, &mut stream, &|_| ()).await.expect("dumped");
    load(&*target, &record, &stream[..stream.len() / 2]).await.expect_err("broken off");
    assert!(target.is_fenced(&spec).await.expect("looked"), "after a lost link");
    // A killed agent leaves what it was at to whoever undoes it.
    let left = "SELECT rolname FROM pg_roles WHERE rolname LIKE 'ferry%'";
    assert_eq!(b.run("postgres", left), "", "nobody is left who loads");
    let temporary = format!("ferry_load_{}", &blake3::hash(b"shop").to_hex()[..16]);
    b.run("postgres", "ALTER DATABASE shop CONNECTION LIMIT 4");
    b.run("postgres", &format!("CREATE ROLE {temporary} LOGIN"));
    b.run("postgres", &format!("GRANT CONNECT ON DATABASE shop TO {temporary}"));
    assert!(!target.is_fenced(&spec).await.expect("looked"));
    target.deprovision(&spec, &Provisioned::default()).await.expect("undone");
    assert!(target.is_fenced(&spec).await.expect("looked"), "after a killed agent");
    target.drop_closed(&spec, &created).await.expect("it can be erased");
}

#[tokio::test(flavor = "multi_thread")]
async fn taken_names_are_refused_and_undo_takes_only_its_own() {
    let (a, b) = (source(), Postgres::start());
    let (source, target, spec) = (a.engine(), b.engine(), shop());
    let record = source.record(&spec, None).await.expect("recorded");
    let state = "SELECT datname, datacl FROM pg_database ORDER BY 1; SELECT rolname FROM pg_roles ORDER BY 1";
    let empty = b.run("postgres", state);
    b.run("postgres", "CREATE DATABASE shop");
    b.run("shop", "CREATE TABLE theirs (a int)");
    let before = b.run("postgres", state);
    let fault = target.provision(&spec, &record, Existing::Refuse).await.expect_err("taken");
    assert_eq!(fault.class, FaultClass::Precondition);
    assert!(fault.message.contains("database shop exists"), "{fault}");
    assert_eq!(b.run("postgres", state), before, "nothing was changed");
    target.deprovision(&spec, &Provisioned::all_of(&spec)).await.expect("undone");
    assert_eq!(b.run("shop", "SELECT relname FROM pg_class WHERE relname = 'theirs'"), "theirs");
    b.run("postgres", "DROP DATABASE shop");
    b.run("postgres", "CREATE ROLE shop");
    let fault = target.provision(&spec, &record, Existing::Refuse).await.expect_err("taken");
    assert!(fault.message.contains("role shop exists"), "{fault}");
    b.run("postgres", "DROP ROLE shop");
    let created = target.provision(&spec, &record, Existing::Refuse).await.expect("provisioned");
    let again = target.provision(&spec, &record, Existing::Refuse).await.expect("repeated");
    assert_eq!(created, again);
    transfer(&*source, &*target, &spec, &record).await.expect("transferred");
    target.deprovision(&spec, &created).await.expect("undone");
    target.deprovision(&spec, &created).await.expect("undone twice");
    assert_eq!(b.run("postgres", state), empty);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_has_served_is_dropped_once_it_is_closed() {
    let (a, b) = (source(), Postgres::start());
    let (source, target, spec) = (a.engine(), b.engine(), shop());
    let state = "SELECT datname, datacl FROM pg_database ORDER BY 1; SELECT rolname FROM pg_roles ORDER BY 1";
    let empty = b.run("postgres", state);
    let record = source.record(&spec, None).await.expect("recorded");
    let created = target.provision(&spec, &record, Existing::Refuse).await.expect("provisioned");
    transfer(&*source, &*target, &spec, &record).await.expect("transferred");
    target.open(&spec, &record).await.expect("opened");
    let fault = target.drop_closed(&spec, &created).await.expect_err("is open");
    assert_eq!(fault.class, FaultClass::Fenced, "{fault}");
    assert_eq!(b.run("shop", "SELECT count(*) FROM t"), "2", "nothing was dropped");
    let plan = target.plan_fence(&spec).await.expect("planned");
    target.fence(&spec, &plan, std::time::Duration::ZERO).await.expect("fenced");
    target.deprovision(&spec, &created).await.expect("no undo of what has served");
    target.drop_closed(&spec, &Provisioned::default()).await.expect("not ours to drop");
    assert_eq!(b.run("shop", "SELECT count(*) FROM t"), "2", "was not created by Ferry");
    b.half_drop("shop");
    // Cut off between databases and roles.
    let half = Provisioned { users: std::collections::BTreeSet::new(), ..created.clone() };
    target.drop_closed(&spec, &half).await.expect("dropped");
    target.drop_closed(&spec, &created).await.expect("and the rest");
    target.drop_closed(&spec, &created).await.expect("repeated");
    assert_eq!(b.run("postgres", state), empty);
    target.provision(&spec, &record, Existing::Refuse).await.expect("the names are free again");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_comes_back_to_its_fenced_copy() {
    let (a, b) = (source(), Postgres::start());
    let (home, away, spec) = (a.engine(), b.engine(), shop());
    let grace = std::time::Duration::ZERO;
    let plan = home.plan_fence(&spec).await.expect("planned");
    home.fence(&spec, &plan, grace).await.expect("fenced");
    let record = home.record(&spec, Some(&plan)).await.expect("recorded");
    away.provision(&spec, &record, Existing::Refuse).await.expect("provisioned");
    transfer(&*home, &*away, &spec, &record).await.expect("there");
    away.open(&spec, &record).await.expect("opened");
    b.run("shop", "INSERT INTO t VALUES (3, 'away', 1); ALTER ROLE shop PASSWORD 'new'");
    let found = home.check_target(&spec, &record, Existing::Replace).await.expect("checked");
    assert!(found.is_empty(), "{found:?}");
    // Both ends are the account's; only the fenced one may be replaced.
    let fault = away.provision(&spec, &record, Existing::Replace).await.expect_err("is open");
    assert!(fault.message.contains("can log in"), "{fault}");
    let back = away.plan_fence(&spec).await.expect("planned");
    away.fence(&spec, &back, grace).await.expect("fenced");
    let record = away.record(&spec, Some(&back)).await.expect("recorded");
    let created = home.provision(&spec, &record, Existing::Replace).await.expect("provisioned");
    assert_eq!(created, Provisioned::default(), "an undo would drop nothing");
    transfer(&*away, &*home, &spec, &record).await.expect("back");
    assert_eq!(differences(&*away, &*home, &spec).await, Vec::<String>::new());
    home.rehearse(&spec, &record).await.expect("rehearsed");
    home.open(&spec, &record).await.expect("opened");
    a.connect("shop", "new", "shop").await.expect("with the password of meanwhile");
    assert_eq!(a.run("shop", "SELECT count(*) FROM t"), "3");
}
