//! The account's databases and users at a target: created closed, dropped again, opened.
//!
//! The mark of what was created and not opened: the comment of a database, the password hash of
//! a user. Opening replaces both by the account's own.

use ferry_proto::Fault;
use ferry_proto::account::{DatabaseUser, EngineKind};

use super::grants::{self, Scope};
use super::record::{DatabaseRecord, MariadbRecord, UserRecord};
use super::session::{Session, ident, text, user};
use super::{events, fence, files, target, temporary, users};
use crate::model::{Existing, Provisioned, Spec, host_of, not_closed, user_label};

pub(super) async fn provision(
    session: &mut Session,
    spec: &Spec,
    record: &MariadbRecord,
    existing: Existing,
) -> Result<Provisioned, Fault> {
    record.check(spec)?;
    let present = target::present(session, spec).await?;
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
    for database in &record.databases {
        let name = &database.name;
        if !present.other_databases.contains(name) {
            created.databases.insert(name.clone());
            if !present.marked_databases.contains(name) {
                create_database(session, database, &spec.mark()).await?;
            }
        }
    }
    for user in &record.users {
        let label = format!("{}@{}", user.name, user.host);
        if !present.locked_users.contains(&label) {
            created.users.insert(label.clone());
            if !present.marked_users.contains(&label) {
                let sql = users::create_closed(spec, &user.name, &user.host);
                session.run(&format!("MariaDB user {label} cannot be created"), &sql).await?;
            }
        }
        let sql = format!(
            "REVOKE ALL PRIVILEGES, GRANT OPTION FROM {}",
            super::session::user(&user.name, &user.host)
        );
        session.run(&format!("the grants of {label} cannot be cleared"), &sql).await?;
        give(session, user, |scope| *scope == Scope::Database, None).await?;
    }
    Ok(created)
}

pub(super) async fn create_database(
    session: &mut Session,
    database: &DatabaseRecord,
    comment: &str,
) -> Result<(), Fault> {
    let sql = format!(
        "CREATE DATABASE IF NOT EXISTS {} CHARACTER SET {} COLLATE {} COMMENT {}",
        ident(&database.name),
        database.charset,
        database.collation,
        text(comment)
    );
    let what = format!("database {} cannot be created", database.name);
    files::set_options(session, &what, &database.name, &sql).await
}

/// Gives a user those of its grants whose scope is wanted, in one database or in all.
pub(super) async fn give(
    session: &mut Session,
    user: &UserRecord,
    wanted: impl Fn(&Scope) -> bool,
    database: Option<&str>,
) -> Result<(), Fault> {
    let number = session.number();
    let chosen = user.grants.iter().filter(|g| wanted(&g.scope));
    for grant in chosen.filter(|g| database.is_none_or(|d| d == g.database)) {
        if let Some(sql) = grants::statement(grant, &user.name, &user.host, number) {
            let what = format!("a grant cannot be given to {}@{}", user.name, user.host);
            session.run(&what, &sql).await?;
        }
    }
    Ok(())
}

pub(super) async fn deprovision(
    session: &mut Session,
    spec: &Spec,
    created: &Provisioned,
) -> Result<(), Fault> {
    temporary::drop_all(session, spec).await?;
    let present = target::present(session, spec).await?;
    for name in present.marked_databases.intersection(&created.databases) {
        files::drop_database(session, name).await?;
    }
    for account_user in &spec.users {
        let label = user_label(account_user);
        if present.marked_users.contains(&label) && created.users.contains(&label) {
            drop_user(session, account_user).await?;
        }
    }
    Ok(())
}

/// Databases first: until the last is gone, the users are there and show that it is closed.
pub(super) async fn drop_closed(
    session: &mut Session,
    spec: &Spec,
    created: &Provisioned,
) -> Result<(), Fault> {
    temporary::drop_all(session, spec).await?;
    if !fence::is_fenced(session, spec).await? {
        return Err(not_closed(spec, EngineKind::Mariadb));
    }
    for name in spec.databases.iter().map(|d| d.as_str()) {
        if created.databases.contains(name) {
            files::drop_database(session, name).await?;
        }
    }
    for account_user in &spec.users {
        if created.users.contains(&user_label(account_user)) {
            drop_user(session, account_user).await?;
        }
    }
    Ok(())
}

async fn drop_user(session: &mut Session, account_user: &DatabaseUser) -> Result<(), Fault> {
    let quoted = user(account_user.name.as_str(), host_of(account_user));
    let what = format!("MariaDB user {} cannot be dropped", user_label(account_user));
    session.run(&what, &format!("DROP USER IF EXISTS {quoted}")).await
}

pub(super) async fn open(
    session: &mut Session,
    spec: &Spec,
    record: &MariadbRecord,
) -> Result<(), Fault> {
    record.check(spec)?;
    temporary::drop_all(session, spec).await?;
    for database in &record.databases {
        let sql =
            format!("ALTER DATABASE {} COMMENT {}", ident(&database.name), text(&database.comment));
        let what = format!("database {} cannot be opened", database.name);
        files::set_options(session, &what, &database.name, &sql).await?;
    }
    for event in &record.running_events {
        events::switch(session, event, true, "").await?;
    }
    for user in &record.users {
        let label = format!("{}@{}", user.name, user.host);
        give(session, user, |_| true, None).await?;
        let what = format!("MariaDB user {label} cannot be let in");
        session.run(&what, &users::restore(user)).await?;
        let now = users::find(session, &user.name, &user.host).await?.map(|login| login.record());
        let wanted = UserRecord { grants: Vec::new(), ..user.clone() };
        if now.as_ref() != Some(&wanted) {
            return Err(Fault::permanent(format!(
                "the login of MariaDB user {label} is not what it was at the source"
            ))
            .remedy("compare SHOW CREATE USER on both servers"));
        }
    }
    Ok(())
}
