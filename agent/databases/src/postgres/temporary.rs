//! The temporary role of an account, which loads its dumps and tries them: a member of the
//! account's roles, with a password of its own, and nothing more.

use ferry_proto::Fault;

use super::PostgresqlConfig;
use super::provision::INVALID;
use super::session::{Session, ident, text, text_list};
use crate::model::Spec;
use crate::secret::random_password;

const WHAT: &str = "the temporary role cannot be made";

/// The word in the role's name.
pub(super) const WORD: &str = "load";

pub(super) fn name(spec: &Spec) -> String {
    spec.temporary_user(WORD)
}

/// Makes the role and lets it into the account's databases; returns its password.
pub(super) async fn make(session: &Session, spec: &Spec) -> Result<String, Fault> {
    let role = ident(&name(spec));
    let password = random_password();
    // The verifier, so that no log of statements holds the password.
    let verifier = postgres_protocol::password::scram_sha_256(password.as_bytes());
    let mut sql = format!(
        "BEGIN; CREATE ROLE {role} LOGIN INHERIT NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION \
         CONNECTION LIMIT 4 PASSWORD {};",
        text(&verifier)
    );
    for user in &spec.users {
        sql.push_str(&format!("GRANT {} TO {role};", ident(user.name.as_str())));
    }
    sql.push_str("COMMIT");
    session.run(WHAT, &sql).await?;
    Ok(password)
}

/// Lets the role into a database that nobody else may enter, or out of it again.
pub(super) async fn admit(
    session: &Session,
    spec: &Spec,
    database: &str,
    admitted: bool,
) -> Result<(), Fault> {
    let (database, role) = (ident(database), ident(&name(spec)));
    let sql = if admitted {
        format!(
            "BEGIN; REVOKE CONNECT, TEMPORARY ON DATABASE {database} FROM PUBLIC; \
             GRANT CONNECT, TEMPORARY, CREATE ON DATABASE {database} TO {role}; \
             ALTER DATABASE {database} CONNECTION LIMIT 4; COMMIT"
        )
    } else {
        format!(
            "BEGIN; ALTER DATABASE {database} CONNECTION LIMIT 0; \
             REVOKE ALL ON DATABASE {database} FROM {role}; COMMIT"
        )
    };
    session.run("the temporary role cannot be let in or out", &sql).await
}

/// Closes the databases that the role was let into, then drops it as [`drop_named`]: it is there only while the
/// account is closed, and whoever let it in may not have come to let it out.
pub(super) async fn drop_role(
    config: &PostgresqlConfig,
    session: &Session,
    spec: &Spec,
) -> Result<(), Fault> {
    let list = text_list(spec.databases.iter().map(|d| d.as_str()));
    close(session, spec, &list).await?;
    drop_named(config, session, &name(spec), &format!("datname IN {list}")).await
}

/// Closes what of the account's databases in `list` the role may enter.
async fn close(session: &Session, spec: &Spec, list: &str) -> Result<(), Fault> {
    let what = "what the temporary role was let into cannot be closed";
    let sql = format!(
        "SELECT d.datname FROM pg_database d CROSS JOIN LATERAL aclexplode(d.datacl) a \
         JOIN pg_roles r ON r.oid = a.grantee WHERE d.datname IN {list} \
         AND d.datconnlimit NOT IN (0, {INVALID}) AND r.rolname = {} AND a.privilege_type = 'CONNECT'",
        text(&name(spec))
    );
    for row in session.rows(what, &sql).await? {
        let sql = format!("ALTER DATABASE {} CONNECTION LIMIT 0", ident(&row.text(0)));
        session.run(what, &sql).await?;
    }
    Ok(())
}

/// Drops the role of this name, which may have been in the databases that `within` selects: ends its
/// connections, and gives away what it still owns or may do.
pub(super) async fn drop_named(
    config: &PostgresqlConfig,
    session: &Session,
    name: &str,
    within: &str,
) -> Result<(), Fault> {
    let what = "the temporary role cannot be dropped";
    let sql = format!("SELECT 1 FROM pg_roles WHERE rolname = {}", text(name));
    if session.rows(what, &sql).await?.is_empty() {
        return Ok(());
    }
    session.run(what, &format!("ALTER ROLE {} NOLOGIN", ident(name))).await?;
    let sql = format!("SELECT pid FROM pg_stat_activity WHERE usename = {}", text(name));
    super::fence::end_connections(session, &sql).await?;
    let sql = format!(
        "SELECT datname FROM pg_database WHERE {within} AND datallowconn AND datconnlimit <> {INVALID}"
    );
    for row in session.rows(what, &sql).await? {
        let inside = Session::open(config, &row.text(0)).await?;
        let owner = "SELECT r.rolname FROM pg_database d JOIN pg_roles r ON r.oid = d.datdba WHERE d.datname = current_database()";
        let owner = inside.value(what, owner).await?.unwrap_or_else(|| config.admin.clone());
        let sql = format!(
            "REASSIGN OWNED BY {role} TO {}; DROP OWNED BY {role}",
            ident(&owner),
            role = ident(name)
        );
        inside.run(what, &sql).await?;
    }
    session.run(what, &format!("DROP ROLE {}", ident(name))).await
}
