//! What an account has on a PostgreSQL server, and what stands in the way of moving it away.

use std::collections::BTreeSet;

use ferry_proto::Fault;
use ferry_proto::account::EngineKind;

use super::PostgresqlConfig;
use super::record::{EXTENSIONS, may_carry};
use super::session::{Session, text, text_list};
use crate::model::{DatabaseFacts, Facts, Finding, Level, ServerFacts, Spec, free_bytes};

const WHAT: &str = "the account's databases cannot be inspected";

/// Databases of the account as an SQL list.
pub(super) fn database_list(spec: &Spec) -> String {
    text_list(spec.databases.iter().map(|d| d.as_str()))
}

/// Roles of the account as an SQL list.
pub(super) fn role_list(spec: &Spec) -> String {
    text_list(spec.users.iter().map(|u| u.name.as_str()))
}

pub(super) async fn server(session: &Session) -> Result<ServerFacts, Fault> {
    let data_dir = session.value(WHAT, "SHOW data_directory").await?.unwrap_or_default();
    let free_bytes = free_bytes(data_dir.clone()).await;
    Ok(ServerFacts {
        engine: EngineKind::Postgresql,
        version: session.version().to_owned(),
        free_bytes,
        data_dir,
    })
}

/// Names everything of the definition that the server lacks.
pub(super) async fn check_present(session: &Session, spec: &Spec) -> Result<(), Fault> {
    let sql = format!(
        "SELECT 'database ' || datname FROM pg_database WHERE datname IN {} \
         UNION ALL SELECT 'role ' || rolname FROM pg_roles WHERE rolname IN {}",
        database_list(spec),
        role_list(spec)
    );
    let there: BTreeSet<String> =
        session.rows(WHAT, &sql).await?.iter().map(|r| r.text(0)).collect();
    let wanted = spec.databases.iter().map(|d| format!("database {d}"));
    let wanted = wanted.chain(spec.users.iter().map(|u| format!("role {}", u.name)));
    let missing: Vec<String> = wanted.filter(|w| !there.contains(w)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Fault::precondition(format!(
        "account {} names what the PostgreSQL server does not have: {}",
        spec.account,
        missing.join(", ")
    ))
    .remedy("correct the account's definition, or create what is missing"))
}

pub(super) async fn inspect(config: &PostgresqlConfig, spec: &Spec) -> Result<Facts, Fault> {
    let session = Session::open(config, &config.maintenance_database).await?;
    check_present(&session, spec).await?;
    let mut findings = roles(&session, spec).await?;
    findings.extend(strangers(config, &session, spec).await?);
    findings.extend(cluster(&session, spec).await?);
    let mut databases = Vec::new();
    for name in &spec.databases {
        let inside = Session::open(config, name.as_str()).await?;
        databases.push(database_facts(&inside, name.as_str()).await?);
        findings.extend(contents(&inside, spec, name.as_str()).await?);
    }
    Ok(Facts { server: server(&session).await?, databases, findings })
}

fn blocker(subject: &str, message: String, remedy: &str) -> Finding {
    Finding::new(Level::Blocker, subject, format!("{subject} {message}"), remedy)
}

fn warning(subject: &str, message: String, remedy: &str) -> Finding {
    Finding::new(Level::Warning, subject, format!("{subject} {message}"), remedy)
}

/// Attributes, memberships and settings that are not carried.
async fn roles(session: &Session, spec: &Spec) -> Result<Vec<Finding>, Fault> {
    let list = role_list(spec);
    let mut findings = Vec::new();
    let sql = format!(
        "SELECT rolname, rolsuper, concat_ws(', ', CASE WHEN rolcreatedb THEN 'CREATEDB' END, \
         CASE WHEN rolcreaterole THEN 'CREATEROLE' END, CASE WHEN rolreplication THEN 'REPLICATION' END, \
         CASE WHEN rolbypassrls THEN 'BYPASSRLS' END) FROM pg_roles WHERE rolname IN {list}"
    );
    for row in session.rows(WHAT, &sql).await? {
        let subject = format!("PostgreSQL role {}", row.text(0));
        if row.is(1) {
            findings.push(blocker(
                &subject,
                "is a superuser; an account cannot be one".to_owned(),
                "ALTER ROLE ... NOSUPERUSER",
            ));
        }
        if !row.text(2).is_empty() {
            findings.push(warning(
                &subject,
                format!(
                    "has attributes that reach beyond the account ({}); they are not carried",
                    row.text(2)
                ),
                "",
            ));
        }
    }
    let sql = format!(
        "SELECT m.rolname, r.rolname FROM pg_auth_members a JOIN pg_roles m ON m.oid = a.member \
         JOIN pg_roles r ON r.oid = a.roleid WHERE m.rolname IN {list} AND r.rolname NOT IN {list} ORDER BY 1, 2"
    );
    for row in session.rows(WHAT, &sql).await? {
        let subject = format!("PostgreSQL role {}", row.text(0));
        findings.push(warning(
            &subject,
            format!(
                "is a member of {}, which is not of the account; that is not carried",
                row.text(1)
            ),
            "add that role to the account's definition, if it is the account's",
        ));
    }
    let sql = format!(
        "SELECT coalesce(r.rolname, ''), coalesce(d.datname, ''), split_part(c, '=', 1), s.context \
         FROM pg_db_role_setting x CROSS JOIN unnest(x.setconfig) c \
         LEFT JOIN pg_roles r ON r.oid = x.setrole LEFT JOIN pg_database d ON d.oid = x.setdatabase \
         LEFT JOIN pg_settings s ON s.name = split_part(c, '=', 1) \
         WHERE r.rolname IN {list} OR d.datname IN {}",
        database_list(spec)
    );
    for row in session.rows(WHAT, &sql).await? {
        let free = row.opt(3).is_none_or(|context| context == "user");
        if !free || !may_carry(&row.text(2)) {
            let subject = format!("the setting {}", row.text(2));
            findings.push(warning(
                &subject,
                format!(
                    "of {} {} is for administrators; it is not carried",
                    row.text(0),
                    row.text(1)
                ),
                "",
            ));
        }
    }
    Ok(findings)
}

/// Who could write while the account is fenced. The fence takes every connection of its databases
/// away, whoever's rights they are used with, so that only superusers are left, and members of the
/// account's roles, who could lift it.
async fn strangers(
    config: &PostgresqlConfig,
    session: &Session,
    spec: &Spec,
) -> Result<Vec<Finding>, Fault> {
    let list = role_list(spec);
    let mut findings = Vec::new();
    let sql = format!(
        "SELECT string_agg(rolname, ', ' ORDER BY rolname) FROM pg_roles \
         WHERE rolsuper AND rolcanlogin AND rolname <> {} AND rolname NOT IN {list}",
        text(&config.admin)
    );
    if let Some(named) = session.value(WHAT, &sql).await? {
        findings.push(Finding::new(
            Level::Warning,
            "PostgreSQL superusers",
            format!("a fence does not stop superusers of the server: {named}"),
            "let nobody write to the account's databases as one of them during the move",
        ));
    }
    let sql = format!(
        "SELECT m.rolname, r.rolname FROM pg_auth_members a JOIN pg_roles m ON m.oid = a.member \
         JOIN pg_roles r ON r.oid = a.roleid WHERE r.rolname IN {list} AND m.rolname NOT IN {list} \
         AND NOT m.rolsuper AND m.rolname <> {} ORDER BY 1, 2",
        text(&super::temporary::name(spec))
    );
    for row in session.rows(WHAT, &sql).await? {
        let subject = format!("PostgreSQL role {}", row.text(0));
        findings.push(warning(
            &subject,
            format!(
                "is a member of {} and not of the account: it is kept out by a fence, but could lift it; that is not carried",
                row.text(1)
            ),
            "add that role to the account's definition, if it is the account's, or revoke the membership",
        ));
    }
    Ok(findings)
}

/// Owners of databases, rights of others on them, transactions left prepared.
async fn cluster(session: &Session, spec: &Spec) -> Result<Vec<Finding>, Fault> {
    let (databases, roles) = (database_list(spec), role_list(spec));
    let mut findings = Vec::new();
    let sql = format!(
        "SELECT d.datname, r.rolname FROM pg_database d JOIN pg_roles r ON r.oid = d.datdba \
         WHERE d.datname IN {databases} AND r.rolname NOT IN {roles} AND NOT r.rolsuper"
    );
    for row in session.rows(WHAT, &sql).await? {
        let subject = format!("database {}", row.text(0));
        findings.push(blocker(
            &subject,
            format!("belongs to {}, who is not of the account", row.text(1)),
            "ALTER DATABASE ... OWNER TO one of the account's roles",
        ));
    }
    let sql = format!(
        "SELECT DISTINCT d.datname, r.rolname FROM pg_database d CROSS JOIN aclexplode(d.datacl) a \
         JOIN pg_roles r ON r.oid = a.grantee WHERE d.datname IN {databases} AND r.rolname NOT IN {roles} \
         AND NOT r.rolsuper AND r.oid <> d.datdba"
    );
    for row in session.rows(WHAT, &sql).await? {
        let subject = format!("database {}", row.text(0));
        findings.push(warning(
            &subject,
            format!(
                "gives rights to {}, who is not of the account; they are not carried",
                row.text(1)
            ),
            "add that role to the account's definition, if it is the account's",
        ));
    }
    let sql = format!(
        "SELECT database, gid FROM pg_prepared_xacts WHERE database IN {databases} OR owner IN {roles}"
    );
    for row in session.rows(WHAT, &sql).await? {
        let subject = format!("database {}", row.text(0));
        findings.push(blocker(
            &subject,
            format!("has the prepared transaction {:?}, whose outcome is open", row.text(1)),
            "COMMIT PREPARED or ROLLBACK PREPARED it",
        ));
    }
    let sql = format!(
        "SELECT s.slot_name, s.database FROM pg_replication_slots s WHERE s.database IN {databases}"
    );
    for row in session.rows(WHAT, &sql).await? {
        let subject = format!("replication slot {}", row.text(0));
        findings.push(warning(
            &subject,
            format!("reads database {}; it is not carried", row.text(1)),
            "end the subscription before the move, or set it up again after it",
        ));
    }
    Ok(findings)
}

/// Kinds of objects with the catalogue's names for owner and name, to find foreign owners.
const OWNED: &[(&str, &str, &str, &str)] = &[
    ("pg_class", "relname", "relowner", "relation"),
    ("pg_proc", "proname", "proowner", "routine"),
    // Row types and array types depend on what they are of, and are left out for it.
    ("pg_type", "typname", "typowner", "type"),
    ("pg_operator", "oprname", "oprowner", "operator"),
    ("pg_collation", "collname", "collowner", "collation"),
    ("pg_conversion", "conname", "conowner", "conversion"),
    ("pg_opclass", "opcname", "opcowner", "operator class"),
    ("pg_opfamily", "opfname", "opfowner", "operator family"),
    ("pg_namespace", "nspname", "nspowner", "schema"),
    ("pg_ts_config", "cfgname", "cfgowner", "text search configuration"),
    ("pg_ts_dict", "dictname", "dictowner", "text search dictionary"),
    ("pg_statistic_ext", "stxname", "stxowner", "statistics object"),
];

/// What cannot be created again by the account's roles.
async fn contents(session: &Session, spec: &Spec, database: &str) -> Result<Vec<Finding>, Fault> {
    let roles = role_list(spec);
    let mut findings = Vec::new();
    let from_extension = |class: &str| {
        format!(
            "EXISTS (SELECT 1 FROM pg_depend e WHERE e.classid = '{class}'::regclass AND e.objid = o.oid AND e.deptype IN ('e', 'i'))"
        )
    };
    for (class, name, owner, kind) in OWNED {
        // Objects of the server's own have object ids below 16384; public is treated apart.
        let sql = format!(
            "SELECT o.{name}, r.rolname FROM {class} o JOIN pg_roles r ON r.oid = o.{owner} \
             WHERE o.oid >= 16384 AND r.rolname NOT IN {roles} AND NOT {} AND o.{name} <> 'public' \
             AND o.{name} !~ '^pg_(toast|temp)' ORDER BY 1 LIMIT 20",
            from_extension(class)
        );
        for row in session.rows(WHAT, &sql).await? {
            let subject = format!("{kind} {database}.{}", row.text(0));
            findings.push(blocker(
                &subject,
                format!("belongs to {}, who is not of the account", row.text(1)),
                "ALTER ... OWNER TO one of the account's roles (REASSIGN OWNED)",
            ));
        }
    }
    let sql = "SELECT 'large object ' || m.oid, r.rolname FROM pg_largeobject_metadata m \
               JOIN pg_roles r ON r.oid = m.lomowner";
    let sql = format!("{sql} WHERE r.rolname NOT IN {roles} LIMIT 20");
    for row in session.rows(WHAT, &sql).await? {
        findings.push(blocker(
            &row.text(0),
            format!("of database {database} belongs to {}, who is not of the account", row.text(1)),
            "ALTER LARGE OBJECT ... OWNER TO one of the account's roles",
        ));
    }
    for (what, sql) in SUPERUSER_ONLY {
        for row in session.rows(WHAT, &format!("{sql} LIMIT 20")).await? {
            let subject = format!("{what} {database}.{}", row.text(0));
            findings.push(blocker(
                &subject,
                "can be created by a superuser only, so it cannot be carried".to_owned(),
                "drop it, or move this database by hand",
            ));
        }
    }
    for row in session.rows(WHAT, "SELECT extname FROM pg_extension").await? {
        if !EXTENSIONS.contains(&row.text(0).as_str()) {
            let subject = format!("extension {database}.{}", row.text(0));
            findings.push(blocker(
                &subject,
                "is not one that Ferry creates".to_owned(),
                "drop the extension, or move this database by hand",
            ));
        }
    }
    Ok(findings)
}

/// Objects that only a superuser can create, and how to find them.
const SUPERUSER_ONLY: &[(&str, &str)] = &[
    ("event trigger", "SELECT evtname FROM pg_event_trigger"),
    (
        "subscription",
        "SELECT subname FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid WHERE d.datname = current_database()",
    ),
    ("foreign server", "SELECT srvname FROM pg_foreign_server"),
    (
        "function in an untrusted language",
        "SELECT p.proname FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang \
      WHERE p.oid >= 16384 AND p.prokind <> 'a' AND NOT l.lanpltrusted AND NOT EXISTS (SELECT 1 FROM pg_depend e \
      WHERE e.classid = 'pg_proc'::regclass AND e.objid = p.oid AND e.deptype IN ('e', 'i'))",
    ),
    ("publication for all tables", "SELECT pubname FROM pg_publication WHERE puballtables"),
    (
        "base type",
        "SELECT t.typname FROM pg_type t WHERE t.oid >= 16384 AND t.typtype = 'b' AND t.typelem = 0 \
      AND NOT EXISTS (SELECT 1 FROM pg_depend e WHERE e.classid = 'pg_type'::regclass AND e.objid = t.oid AND e.deptype = 'e')",
    ),
];

/// The size of each database's rows and large objects, indexes left out: a dump does not carry them.
pub(super) async fn data_sizes(config: &PostgresqlConfig, spec: &Spec) -> Result<Vec<u64>, Fault> {
    let sql = "SELECT coalesce(sum(pg_table_size(c.oid)), 0) FROM pg_class c \
               WHERE (c.relkind = 'r' AND c.oid >= 16384) OR c.oid = 'pg_largeobject'::regclass";
    let mut sizes = Vec::new();
    for name in &spec.databases {
        let inside = Session::open(config, name.as_str()).await?;
        let size = inside.value(WHAT, sql).await?.and_then(|text| text.parse().ok());
        sizes.push(size.unwrap_or(0));
    }
    Ok(sizes)
}

async fn database_facts(session: &Session, name: &str) -> Result<DatabaseFacts, Fault> {
    let sql = format!(
        "SELECT pg_database_size(d.oid), pg_encoding_to_char(d.encoding), d.datcollate, d.datctype, r.rolname, \
         (SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE relkind IN ('r', 'p') AND nspname !~ '^pg_' AND nspname <> 'information_schema'), \
         (SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE relkind IN ('v', 'm') AND nspname !~ '^pg_' AND nspname <> 'information_schema'), \
         (SELECT count(*) FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'), \
         (SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal), \
         (SELECT count(*) FROM pg_class WHERE relkind = 'S') \
         FROM pg_database d JOIN pg_roles r ON r.oid = d.datdba WHERE d.datname = {}",
        text(name)
    );
    let rows = session.rows(WHAT, &sql).await?;
    let Some(row) = rows.first() else {
        return Err(Fault::transient(format!("database {name} went away while it was inspected")));
    };
    let extensions = session.rows(WHAT, "SELECT extname FROM pg_extension ORDER BY 1").await?;
    let number = |column: usize| u64::try_from(row.number(column)).unwrap_or(0);
    Ok(DatabaseFacts {
        name: name.to_owned(),
        size_bytes: number(0),
        charset: row.text(1),
        collation: row.text(2),
        ctype: Some(row.text(3)),
        owner: Some(row.text(4)),
        extensions: extensions.iter().map(|r| r.text(0)).collect(),
        tables: number(5),
        views: number(6),
        routines: number(7),
        triggers: number(8),
        events: 0,
        sequences: number(9),
    })
}
