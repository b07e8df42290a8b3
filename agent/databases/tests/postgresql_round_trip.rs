//! A shop with everything that is hard to move goes from one PostgreSQL server to another.

mod support;

use std::time::Duration;

use ferry_databases::{Existing, Level};
use support::postgresql::{NASTY, NASTY_CLUSTER, Postgres, first, nasty_spec};
use support::{differences, transfer};

const GRACE: Duration = Duration::from_millis(300);

#[tokio::test(flavor = "multi_thread")]
async fn everything_arrives_and_works() {
    let (a, b) = (Postgres::start(), Postgres::start());
    a.run("postgres", NASTY_CLUSTER);
    a.run("shop", NASTY);
    a.run("Shop-latin", "SET ROLE \"Shop-reader\"; CREATE SCHEMA s; CREATE TABLE s.t (x text); INSERT INTO s.t VALUES (U&'caf\\00E9'); RESET ROLE; DROP SCHEMA public");
    let (source, target, spec) = (a.engine(), b.engine(), nasty_spec());

    let facts = source.inspect(&spec).await.expect("inspected");
    let blockers: Vec<_> = facts.blockers().collect();
    assert!(blockers.is_empty(), "{blockers:?}");

    let before = source.record(&spec, None).await.expect("recorded");
    let plan = source.plan_fence(&spec).await.expect("planned");
    source.fence(&spec, &plan, GRACE).await.expect("fenced");
    assert!(source.is_fenced(&spec).await.expect("asked"));
    let record = source.record(&spec, Some(&plan)).await.expect("recorded again");
    assert_eq!(before, record, "a fence does not change what is recorded");

    let found = target.check_target(&spec, &record, Existing::Refuse).await.expect("checked");
    assert!(found.iter().all(|f| f.level != Level::Blocker), "{found:?}");
    let created = target.provision(&spec, &record, Existing::Refuse).await.expect("provisioned");
    assert_eq!((created.databases.len(), created.users.len()), (2, 4));
    transfer(&*source, &*target, &spec, &record).await.expect("transferred");
    assert_eq!(differences(&*source, &*target, &spec).await, Vec::<String>::new());
    target.rehearse(&spec, &record).await.expect("rehearsed");
    assert!(target.is_fenced(&spec).await.expect("asked"), "closed before the open");
    b.connect("shop", "old password", "shop").await.expect_err("closed before the open");
    b.connect("bystander", "b", "shop").await.expect_err("closed for everybody");

    target.open(&spec, &record).await.expect("opened");
    target.open(&spec, &record).await.expect("opened again");
    assert_eq!(differences(&*source, &*target, &spec).await, Vec::<String>::new());
    works(&b).await;
    source.unfence(&spec, &plan).await.expect("unfenced");
    let cluster = "SELECT rolname, rolpassword, rolcanlogin, rolconnlimit, shobj_description(oid, 'pg_authid') FROM pg_authid WHERE rolname ~* 'shop' ORDER BY 1; \
                   SELECT datname, datconnlimit, shobj_description(oid, 'pg_database') FROM pg_database WHERE datname ~* 'shop' ORDER BY 1; \
                   SELECT datname, coalesce(r.rolname, 'all'), a.privilege_type, a.is_grantable FROM pg_database d, \
                   aclexplode(coalesce(datacl, acldefault('d', datdba))) a LEFT JOIN pg_roles r ON r.oid = a.grantee WHERE datname ~* 'shop' ORDER BY 1, 2, 3; \
                   SELECT c FROM pg_db_role_setting, unnest(setconfig) c ORDER BY 1";
    assert_eq!(a.run("postgres", cluster), b.run("postgres", cluster));
    assert_eq!(b.run("postgres", "SELECT rolname FROM pg_roles WHERE rolname LIKE 'ferry%'"), "");
}

/// The account's own passwords, rights and stored objects.
async fn works(server: &Postgres) {
    let shop = server.connect("shop", "old password", "shop").await.expect("let in");
    shop.batch_execute("SET default_transaction_read_only = off").await.expect("may");
    shop.batch_execute("INSERT INTO public.bag VALUES ('new')").await.expect("may write");
    let stamped =
        first(&shop, "SELECT t FROM public.bag WHERE t LIKE 'new%'").await.expect("may read");
    assert_eq!(stamped.as_deref(), Some("new stamped \\\\ "), "triggers run");
    assert_eq!(
        first(&shop, "SELECT nextval('public.seq')").await.expect("may").as_deref(),
        Some("77")
    );
    assert_eq!(first(&shop, "SELECT std(2)").await.expect("may").as_deref(), Some("3"));
    assert_eq!(first(&shop, "SHOW work_mem").await.expect("may").as_deref(), Some("5MB"));
    let reader = server.connect("Shop-reader", "read", "shop").await;
    // Its password is kept as MD5, which servers of this configuration take as little as before.
    assert!(reader.is_err());
    server.connect("shop", "wrong", "shop").await.expect_err("needs the password");
    server.connect("shop_group", "", "shop").await.expect_err("could not log in at the source");
}
