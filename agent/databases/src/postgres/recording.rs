//! Reading what is recorded of an account.

use ferry_proto::Fault;

use super::inspect::{check_present, database_list, role_list};
use super::record::{
    AclItem, DatabaseRecord, Extension, Locale, Membership, PostgresqlRecord, Provider,
    PublicSchema, RoleRecord, Setting, may_carry,
};
use super::session::{Row, Session, text};
use super::{PostgresqlConfig, PostgresqlFence};
use crate::model::Spec;
use crate::secret::Secret;

const WHAT: &str = "the account's roles and databases cannot be recorded";

pub(super) async fn record(
    config: &PostgresqlConfig,
    spec: &Spec,
    fence: Option<&PostgresqlFence>,
) -> Result<PostgresqlRecord, Fault> {
    let session = Session::open(config, &config.maintenance_database).await?;
    check_present(&session, spec).await?;
    let settings = settings(&session, spec).await?;
    let mut roles = Vec::new();
    for user in &spec.users {
        let mut role = role(&session, spec, user.name.as_str(), &settings).await?;
        if let Some(before) = fence.and_then(|f| f.login(&role.name)) {
            role.login = before;
        }
        roles.push(role);
    }
    let mut databases = Vec::new();
    for name in &spec.databases {
        let inside = Session::open(config, name.as_str()).await?;
        let mut database = database(&inside, spec, name.as_str(), &settings).await?;
        if let Some(before) = fence.and_then(|f| f.connection_limit(&database.name)) {
            database.connection_limit = before;
        }
        databases.push(database);
    }
    Ok(PostgresqlRecord {
        version: session.version().to_owned(),
        major: session.major(),
        databases,
        roles,
    })
}

/// A setting with the names of its database (empty: every one) and role.
struct Found {
    database: String,
    setting: Setting,
}

/// The settings of the account's roles and databases that are carried.
async fn settings(session: &Session, spec: &Spec) -> Result<Vec<Found>, Fault> {
    let (databases, roles) = (database_list(spec), role_list(spec));
    let sql = format!(
        "SELECT coalesce(d.datname, ''), r.rolname, split_part(c, '=', 1), substr(c, strpos(c, '=') + 1) \
         FROM pg_db_role_setting x CROSS JOIN unnest(x.setconfig) c \
         LEFT JOIN pg_roles r ON r.oid = x.setrole LEFT JOIN pg_database d ON d.oid = x.setdatabase \
         LEFT JOIN pg_settings s ON s.name = split_part(c, '=', 1) \
         WHERE coalesce(s.context, 'user') = 'user' AND ((r.rolname IN {roles} AND d.datname IS NULL) \
         OR (d.datname IN {databases} AND (x.setrole = 0 OR r.rolname IN {roles}))) ORDER BY 1, 2, 3"
    );
    let rows = session.rows(WHAT, &sql).await?;
    let found = rows.iter().map(|r| Found {
        database: r.text(0),
        setting: Setting { role: r.opt(1).map(str::to_owned), name: r.text(2), value: r.text(3) },
    });
    Ok(found.filter(|f| may_carry(&f.setting.name)).collect())
}

async fn role(
    session: &Session,
    spec: &Spec,
    name: &str,
    settings: &[Found],
) -> Result<RoleRecord, Fault> {
    let sql = format!(
        "SELECT rolpassword, rolcanlogin, rolinherit, rolconnlimit, rolvaliduntil, \
         shobj_description(oid, 'pg_authid') FROM pg_authid WHERE rolname = {}",
        text(name)
    );
    let rows = session.rows(WHAT, &sql).await?;
    let row = rows
        .first()
        .ok_or_else(|| Fault::transient(format!("role {name} went away while it was recorded")))?;
    let own = settings
        .iter()
        .filter(|f| f.database.is_empty() && f.setting.role.as_deref() == Some(name));
    Ok(RoleRecord {
        name: name.to_owned(),
        verifier: row.opt(0).map(|v| Secret(v.to_owned())),
        login: row.is(1),
        inherit: row.is(2),
        connection_limit: i32::try_from(row.number(3)).unwrap_or(-1),
        valid_until: row.opt(4).map(str::to_owned),
        comment: row.opt(5).map(str::to_owned),
        settings: own.map(|f| f.setting.clone()).collect(),
        member_of: memberships(session, spec, name).await?,
    })
}

/// The roles of the account that `name` is a member of.
pub(super) async fn memberships(
    session: &Session,
    spec: &Spec,
    name: &str,
) -> Result<Vec<Membership>, Fault> {
    let options = if session.major() >= 16 {
        "bool_or(a.inherit_option), bool_or(a.set_option)"
    } else {
        "NULL, NULL"
    };
    let sql = format!(
        "SELECT r.rolname, bool_or(a.admin_option), {options} FROM pg_auth_members a \
         JOIN pg_roles m ON m.oid = a.member JOIN pg_roles r ON r.oid = a.roleid \
         WHERE m.rolname = {} AND r.rolname IN {} GROUP BY r.rolname ORDER BY 1",
        text(name),
        role_list(spec)
    );
    let rows = session.rows(WHAT, &sql).await?;
    Ok(rows
        .iter()
        .map(|r| Membership {
            role: r.text(0),
            admin: r.is(1),
            inherit: r.opt(2).map(|v| v == "t"),
            set: r.opt(3).map(|v| v == "t"),
        })
        .collect())
}

fn acl(rows: &[Row]) -> Vec<AclItem> {
    let item = |r: &Row| AclItem {
        grantee: r.opt(0).map(str::to_owned),
        privilege: r.text(1),
        grantable: r.is(2),
    };
    rows.iter().map(item).collect()
}

/// Privileges of everybody and of the account's roles, as `aclexplode` has them.
pub(super) fn acl_sql(list: &str, spec: &Spec, from: &str) -> String {
    let roles = role_list(spec);
    format!(
        "SELECT r.rolname, a.privilege_type, bool_or(a.is_grantable) FROM {from} CROSS JOIN LATERAL aclexplode({list}) a \
         LEFT JOIN pg_roles r ON r.oid = a.grantee WHERE a.grantee = 0 OR r.rolname IN {roles} \
         GROUP BY r.rolname, a.privilege_type ORDER BY 1 NULLS FIRST, 2"
    )
}

async fn database(
    session: &Session,
    spec: &Spec,
    name: &str,
    settings: &[Found],
) -> Result<DatabaseRecord, Fault> {
    let sql = format!(
        "SELECT r.rolname, r.rolsuper, pg_encoding_to_char(d.encoding), d.datconnlimit, \
         shobj_description(d.oid, 'pg_database'), d.datacl IS NULL FROM pg_database d \
         JOIN pg_roles r ON r.oid = d.datdba WHERE d.datname = {}",
        text(name)
    );
    let rows = session.rows(WHAT, &sql).await?;
    let row = rows.first().ok_or_else(|| {
        Fault::transient(format!("database {name} went away while it was recorded"))
    })?;
    let owner = (!row.is(1)).then(|| row.text(0));
    let grants = if row.is(5) {
        None
    } else {
        let from = format!("(SELECT datacl FROM pg_database WHERE datname = {}) d", text(name));
        Some(acl(&session.rows(WHAT, &acl_sql("d.datacl", spec, &from)).await?))
    };
    let own = settings.iter().filter(|f| f.database == name);
    Ok(DatabaseRecord {
        name: name.to_owned(),
        owner,
        encoding: row.text(2),
        locale: locale(session, name).await?,
        connection_limit: i32::try_from(row.number(3)).unwrap_or(-1),
        comment: row.opt(4).map(str::to_owned),
        grants,
        settings: own.map(|f| f.setting.clone()).collect(),
        extensions: extensions(session, spec).await?,
        public: public(session, spec).await?,
    })
}

pub(super) async fn locale(session: &Session, name: &str) -> Result<Locale, Fault> {
    let columns = match session.major() {
        17.. => "datlocprovider, datlocale, daticurules",
        16 => "datlocprovider, daticulocale, daticurules",
        15 => "datlocprovider, daticulocale, NULL",
        _ => "'c', NULL, NULL",
    };
    let sql = format!(
        "SELECT datcollate, datctype, {columns} FROM pg_database WHERE datname = {}",
        text(name)
    );
    let rows = session.rows(WHAT, &sql).await?;
    let row = rows.first().ok_or_else(|| Fault::transient(format!("database {name} went away")))?;
    Ok(Locale {
        provider: match row.opt(2) {
            Some("i") => Provider::Icu,
            Some("b") => Provider::Builtin,
            _ => Provider::Libc,
        },
        collate: row.text(0),
        ctype: row.text(1),
        locale: row.opt(3).map(str::to_owned),
        rules: row.opt(4).map(str::to_owned),
    })
}

async fn extensions(session: &Session, spec: &Spec) -> Result<Vec<Extension>, Fault> {
    let sql = "SELECT e.extname, n.nspname, e.extversion, r.rolname FROM pg_extension e \
               JOIN pg_namespace n ON n.oid = e.extnamespace JOIN pg_roles r ON r.oid = e.extowner \
               ORDER BY e.oid";
    let ours = |owner: &str| spec.users.iter().any(|u| u.name.as_str() == owner);
    let rows = session.rows(WHAT, sql).await?;
    Ok(rows
        .iter()
        .map(|r| Extension {
            name: r.text(0),
            schema: r.text(1),
            version: r.text(2),
            owner: r.opt(3).filter(|o| ours(o)).map(str::to_owned),
        })
        .collect())
}

async fn public(session: &Session, spec: &Spec) -> Result<Option<PublicSchema>, Fault> {
    let sql = "SELECT r.rolname FROM pg_namespace n JOIN pg_roles r ON r.oid = n.nspowner WHERE n.nspname = 'public'";
    let Some(owner) = session.value(WHAT, sql).await? else { return Ok(None) };
    let from = "(SELECT coalesce(nspacl, acldefault('n', nspowner)) AS acl FROM pg_namespace WHERE nspname = 'public') n";
    let grants = acl(&session.rows(WHAT, &acl_sql("n.acl", spec, from)).await?);
    let ours = spec.users.iter().any(|u| u.name.as_str() == owner);
    Ok(Some(PublicSchema { owner: ours.then_some(owner), grants }))
}
