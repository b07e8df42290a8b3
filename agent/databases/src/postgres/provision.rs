//! The account's databases and roles at a target: created closed, dropped again, opened.
//!
//! The mark of what was created and not opened is a comment on it. A database cannot be created and
//! marked in one transaction, so it is created under a name derived from the account, marked, and
//! given its own name last.

use std::collections::BTreeSet;

use ferry_proto::Fault;
use ferry_proto::account::EngineKind;

use super::record::{AclItem, DatabaseRecord, PostgresqlRecord, Provider, RoleRecord, Setting};
use super::session::{Session, ident, text};
use super::{PostgresqlConfig, fence, recording, target, temporary};
use crate::model::{Existing, Provisioned, Spec, not_closed};

pub(super) async fn provision(
    config: &PostgresqlConfig,
    spec: &Spec,
    record: &PostgresqlRecord,
    existing: Existing,
) -> Result<Provisioned, Fault> {
    record.check(spec)?;
    let session = Session::exclusive(config, spec).await?;
    let present = target::present(&session, spec).await?;
    let taken = target::taken(&present, existing);
    if let Some(first) = taken.first() {
        let all: Vec<&str> = taken.iter().map(|f| f.message.as_str()).collect();
        return Err(Fault::precondition(format!(
            "account {} cannot be received: {}",
            spec.account,
            all.join("; ")
        ))
        .remedy(first.remedy.clone()));
    }
    let mut created = Provisioned::default();
    for role in &record.roles {
        if !present.closed_roles.contains(&role.name) {
            created.users.insert(role.name.clone());
            if !present.marked_roles.contains(&role.name) {
                create_role(&session, spec, &role.name).await?;
            }
        }
        shape_role(&session, role, false).await?;
    }
    for role in &record.roles {
        join_roles(&session, spec, role).await?;
    }
    for database in &record.databases {
        let marked = present.databases.get(&database.name);
        if marked.is_none() {
            create_database(config, &session, spec, database, Some(&spec.mark())).await?;
        }
        if marked.copied().unwrap_or(true) {
            created.databases.insert(database.name.clone());
        }
    }
    Ok(created)
}

async fn create_role(session: &Session, spec: &Spec, name: &str) -> Result<(), Fault> {
    let sql = format!(
        "BEGIN; CREATE ROLE {role} NOLOGIN; COMMENT ON ROLE {role} IS {}; COMMIT",
        text(&spec.mark()),
        role = ident(name)
    );
    session.run(&format!("PostgreSQL role {name} cannot be created"), &sql).await
}

/// Gives a role its password, limits and settings; it may log in only if `open`.
async fn shape_role(session: &Session, role: &RoleRecord, open: bool) -> Result<(), Fault> {
    let login = if open && role.login { "LOGIN" } else { "NOLOGIN" };
    let inherit = if role.inherit { "INHERIT" } else { "NOINHERIT" };
    let password = role.verifier.as_ref().map_or("NULL".to_owned(), |v| text(&v.0));
    let until = text(role.valid_until.as_deref().unwrap_or("infinity"));
    let name = ident(&role.name);
    let mut sql = format!(
        "BEGIN; ALTER ROLE {name} NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS {login} {inherit} \
         CONNECTION LIMIT {} PASSWORD {password} VALID UNTIL {until}; ALTER ROLE {name} RESET ALL;",
        role.connection_limit
    );
    for setting in allowed(session, &role.settings).await? {
        sql.push_str(&format!("ALTER ROLE {name} SET {};", assignment(setting)));
    }
    if open {
        let comment = role.comment.as_deref().map_or("NULL".to_owned(), text);
        sql.push_str(&format!("COMMENT ON ROLE {name} IS {comment};"));
    }
    sql.push_str("COMMIT");
    session
        .run(&format!("PostgreSQL role {} cannot be given its attributes", role.name), &sql)
        .await
}

/// The settings that anybody could make at this server: a record must not make others.
async fn allowed<'a>(
    session: &Session,
    settings: &'a [Setting],
) -> Result<Vec<&'a Setting>, Fault> {
    if settings.is_empty() {
        return Ok(Vec::new());
    }
    let sql = "SELECT name FROM pg_settings WHERE context <> 'user'";
    let rows = session.rows("the server's settings cannot be read", sql).await?;
    let reserved: BTreeSet<String> = rows.iter().map(|r| r.text(0).to_ascii_lowercase()).collect();
    Ok(settings.iter().filter(|s| !reserved.contains(&s.name.to_ascii_lowercase())).collect())
}

/// Settings whose value is a list of names: each is a value of its own.
const LISTS: &[&str] = &["search_path", "temp_tablespaces"];

fn assignment(setting: &Setting) -> String {
    // A custom setting's name is two names.
    let name: Vec<String> = setting.name.split('.').map(ident).collect();
    let value = if LISTS.contains(&setting.name.as_str()) {
        let parts: Vec<String> = split_list(&setting.value).iter().map(|part| text(part)).collect();
        if parts.is_empty() { "''".to_owned() } else { parts.join(", ") }
    } else {
        text(&setting.value)
    };
    format!("{} = {value}", name.join("."))
}

/// The names in a list as the server keeps it, with quotes where they are needed.
fn split_list(list: &str) -> Vec<String> {
    let mut parts = Vec::new();
    let mut part = String::new();
    let mut quoted = false;
    let mut chars = list.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                part.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => parts.push(std::mem::take(&mut part)),
            c if c.is_whitespace() && !quoted => {}
            c => part.push(c),
        }
    }
    parts.push(part);
    parts.retain(|p| !p.is_empty());
    parts
}

/// Makes a role a member of exactly the account's roles that it was a member of.
async fn join_roles(session: &Session, spec: &Spec, role: &RoleRecord) -> Result<(), Fault> {
    let what = format!("the memberships of PostgreSQL role {} cannot be set", role.name);
    let name = ident(&role.name);
    let mut sql = String::from("BEGIN;");
    for now in recording::memberships(session, spec, &role.name).await? {
        sql.push_str(&format!("REVOKE {} FROM {name};", ident(&now.role)));
    }
    for wanted in &role.member_of {
        let options = match (session.major() >= 16, wanted.inherit, wanted.set) {
            (true, Some(inherit), Some(set)) => {
                format!(" WITH ADMIN {}, INHERIT {inherit}, SET {set}", wanted.admin)
            }
            _ if wanted.admin => " WITH ADMIN OPTION".to_owned(),
            _ => String::new(),
        };
        sql.push_str(&format!("GRANT {} TO {name}{options};", ident(&wanted.role)));
    }
    sql.push_str("COMMIT");
    session.run(&what, &sql).await
}

/// Creates a database that nobody can connect to.
pub(super) async fn create_database(
    config: &PostgresqlConfig,
    session: &Session,
    spec: &Spec,
    database: &DatabaseRecord,
    comment: Option<&str>,
) -> Result<(), Fault> {
    let what = format!("database {} cannot be created", database.name);
    let unnamed = ident(&unnamed(spec, &database.name));
    drop_database(session, &unnamed).await?;
    let locale = &database.locale;
    let icu = locale.locale.as_deref().map(text).unwrap_or_default();
    let provider = match locale.provider {
        Provider::Libc if session.major() >= 15 => " LOCALE_PROVIDER libc".to_owned(),
        Provider::Libc => String::new(),
        Provider::Icu => {
            let rules = locale.rules.as_ref().filter(|_| session.major() >= 16);
            let rules = rules.map(|r| format!(" ICU_RULES {}", text(r))).unwrap_or_default();
            format!(" LOCALE_PROVIDER icu ICU_LOCALE {icu}{rules}")
        }
        Provider::Builtin => format!(" LOCALE_PROVIDER builtin BUILTIN_LOCALE {icu}"),
    };
    let create = format!(
        "CREATE DATABASE {unnamed} OWNER {} TEMPLATE template0 ENCODING {} LC_COLLATE {} LC_CTYPE {}{provider} \
         CONNECTION LIMIT 0",
        ident(database.owner.as_deref().unwrap_or(&config.admin)),
        text(&database.encoding),
        text(&locale.collate),
        text(&locale.ctype)
    );
    session.run(&what, &create).await?;
    let finish = format!(
        "BEGIN; REVOKE CONNECT, TEMPORARY ON DATABASE {unnamed} FROM PUBLIC; \
         COMMENT ON DATABASE {unnamed} IS {}; ALTER DATABASE {unnamed} RENAME TO {}; COMMIT",
        comment.map_or("NULL".to_owned(), text),
        ident(&database.name)
    );
    session.run(&what, &finish).await
}

/// The word in the name of a database that has not been given its own yet.
pub(super) const UNNAMED: &str = "new";

/// The name of a database that has not been given its own yet.
fn unnamed(spec: &Spec, database: &str) -> String {
    let hash = blake3::hash(format!("{}/{database}", spec.account).as_bytes()).to_hex();
    format!("ferry_{UNNAMED}_{}", &hash[..16])
}

/// Drops a database and ends whatever is connected to it. The name is quoted.
pub(super) async fn drop_database(session: &Session, quoted: &str) -> Result<(), Fault> {
    let what = format!("database {quoted} cannot be dropped");
    session.run(&what, &format!("DROP DATABASE IF EXISTS {quoted} WITH (FORCE)")).await
}

/// The connection limit by which PostgreSQL knows a database whose dropping was cut off
/// (`DATCONNLIMIT_INVALID_DB`; 2023's minor releases and later). Nobody can connect to it or alter it, and
/// it can only be dropped.
pub(super) const INVALID: i32 = -2;

/// Whether a database's dropping was cut off, by a full disk or a crash.
pub(super) async fn is_invalid(session: &Session, name: &str) -> Result<bool, Fault> {
    let sql = format!(
        "SELECT 1 FROM pg_database WHERE datname = {} AND datconnlimit = {INVALID}",
        text(name)
    );
    Ok(!session.rows("a database cannot be looked at", &sql).await?.is_empty())
}

pub(super) async fn deprovision(
    config: &PostgresqlConfig,
    spec: &Spec,
    created: &Provisioned,
) -> Result<(), Fault> {
    let session = Session::exclusive(config, spec).await?;
    let present = target::present(&session, spec).await?;
    for database in &spec.databases {
        drop_database(&session, &ident(&unnamed(spec, database.as_str()))).await?;
    }
    for (name, _) in present.databases.iter().filter(|(_, marked)| **marked) {
        if created.databases.contains(name) {
            drop_database(&session, &ident(name)).await?;
        }
    }
    temporary::drop_role(config, &session, spec).await?;
    for name in present.marked_roles.intersection(&created.users) {
        drop_role(&session, name).await?;
    }
    Ok(())
}

/// Databases first: until the last is gone, the roles are there and show that it is closed.
pub(super) async fn drop_closed(
    config: &PostgresqlConfig,
    spec: &Spec,
    created: &Provisioned,
) -> Result<(), Fault> {
    let session = Session::exclusive(config, spec).await?;
    temporary::drop_role(config, &session, spec).await?;
    if !fence::is_fenced(&session, spec).await? {
        return Err(not_closed(spec, EngineKind::Postgresql));
    }
    for name in spec.databases.iter().map(|d| d.as_str()) {
        drop_database(&session, &ident(&unnamed(spec, name))).await?;
        if created.databases.contains(name) {
            drop_database(&session, &ident(name)).await?;
        }
    }
    for name in spec.users.iter().map(|u| u.name.as_str()) {
        if created.users.contains(name) {
            drop_role(&session, name).await?;
        }
    }
    Ok(())
}

pub(super) async fn drop_role(session: &Session, name: &str) -> Result<(), Fault> {
    let what = format!("PostgreSQL role {name} cannot be dropped");
    session.run(&what, &format!("DROP ROLE IF EXISTS {}", ident(name))).await
}

/// Gives a database its settings.
pub(super) async fn set_defaults(
    session: &Session,
    database: &DatabaseRecord,
) -> Result<(), Fault> {
    let name = ident(&database.name);
    let mut sql = format!("BEGIN; ALTER DATABASE {name} RESET ALL;");
    for setting in allowed(session, &database.settings).await? {
        match &setting.role {
            None => sql.push_str(&format!("ALTER DATABASE {name} SET {};", assignment(setting))),
            Some(role) => sql.push_str(&format!(
                "ALTER ROLE {} IN DATABASE {name} SET {};",
                ident(role),
                assignment(setting)
            )),
        }
    }
    sql.push_str("COMMIT");
    session.run(&format!("database {} cannot be given its settings", database.name), &sql).await
}

/// GRANT statements for exactly these privileges on an object, for everybody and the account.
pub(super) fn exact_grants(spec: &Spec, object: &str, grants: &[AclItem]) -> String {
    let mut sql = format!("REVOKE ALL ON {object} FROM PUBLIC;");
    for user in &spec.users {
        sql.push_str(&format!("REVOKE ALL ON {object} FROM {};", ident(user.name.as_str())));
    }
    for item in grants {
        let grantee = item.grantee.as_deref().map_or("PUBLIC".to_owned(), ident);
        let option = if item.grantable { " WITH GRANT OPTION" } else { "" };
        sql.push_str(&format!("GRANT {} ON {object} TO {grantee}{option};", item.privilege));
    }
    sql
}

pub(super) async fn open(
    config: &PostgresqlConfig,
    spec: &Spec,
    record: &PostgresqlRecord,
) -> Result<(), Fault> {
    record.check(spec)?;
    let session = Session::exclusive(config, spec).await?;
    temporary::drop_role(config, &session, spec).await?;
    for database in &record.databases {
        open_database(config, &session, spec, database).await?;
    }
    for role in &record.roles {
        shape_role(&session, role, true).await?;
    }
    let now = recording::record(config, spec, None).await?;
    for (wanted, now) in record.roles.iter().zip(&now.roles) {
        let same = wanted.name == now.name
            && wanted.verifier == now.verifier
            && wanted.login == now.login
            && wanted.connection_limit == now.connection_limit;
        if !same {
            return Err(Fault::permanent(format!(
                "the login of PostgreSQL role {} is not what it was at the source",
                wanted.name
            ))
            .remedy("compare pg_authid on both servers"));
        }
    }
    Ok(())
}

async fn open_database(
    config: &PostgresqlConfig,
    session: &Session,
    spec: &Spec,
    database: &DatabaseRecord,
) -> Result<(), Fault> {
    let name = ident(&database.name);
    let object = format!("DATABASE {name}");
    let owner = database.owner.as_deref().unwrap_or(&config.admin);
    let mut sql = format!("BEGIN; ALTER DATABASE {name} OWNER TO {};", ident(owner));
    match &database.grants {
        Some(grants) => sql.push_str(&exact_grants(spec, &object, grants)),
        None => {
            sql.push_str(&exact_grants(spec, &object, &[]));
            sql.push_str(&format!(
                "GRANT ALL ON {object} TO {}; GRANT CONNECT, TEMPORARY ON {object} TO PUBLIC;",
                ident(owner)
            ));
        }
    }
    sql.push_str(&format!(
        "COMMENT ON {object} IS {}; ALTER DATABASE {name} CONNECTION LIMIT {}; COMMIT",
        database.comment.as_deref().map_or("NULL".to_owned(), text),
        database.connection_limit
    ));
    session.run(&format!("database {} cannot be opened", database.name), &sql).await?;
    set_defaults(session, database).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_names_are_taken_apart() {
        assert_eq!(split_list("\"$user\", public"), ["$user", "public"]);
        assert_eq!(split_list("\"a,\"\"b\",c"), ["a,\"b", "c"]);
        assert_eq!(split_list("\"\""), Vec::<String>::new());
    }

    #[test]
    fn settings_cannot_break_out() {
        let setting = |name: &str, value: &str| Setting {
            role: None,
            name: name.to_owned(),
            value: value.to_owned(),
        };
        assert_eq!(assignment(&setting("app.x", "a'b")), "\"app\".\"x\" = 'a''b'");
        assert_eq!(
            assignment(&setting("search_path", "\"$user\", public")),
            "\"search_path\" = '$user', 'public'"
        );
        assert_eq!(assignment(&setting("search_path", "\"\"")), "\"search_path\" = ''");
    }
}
