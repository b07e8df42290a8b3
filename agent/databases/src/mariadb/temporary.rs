//! The temporary users of an account: they load its dumps, define its stored objects, try them.
//! Their names are derived from the account, so that one left by a crash is found and dropped.

use std::collections::BTreeSet;

use ferry_proto::Fault;

use super::session::{Session, grant_database, text, text_list, user};
use crate::model::Spec;

const WHAT: &str = "a temporary database user cannot be made";

/// What a temporary user is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Loading dumps, by a client that runs as the account's Unix user: every right on the
    /// account's databases, and none elsewhere.
    Load,
    /// Trying what was loaded: the same rights, used by the agent.
    Rehearse,
    /// Defining stored objects for the account's users: may also name others as definer, so it must
    /// be given one statement at a time, and none that runs the account's code.
    Define,
}

impl Purpose {
    const ALL: [Self; 3] = [Self::Load, Self::Rehearse, Self::Define];

    pub(super) fn user(self, spec: &Spec) -> String {
        spec.temporary_user(match self {
            Self::Load => "load",
            Self::Rehearse => "try",
            Self::Define => "define",
        })
    }
}

/// The name of a Unix user.
pub(super) async fn unix_name(uid: u32) -> Result<String, Fault> {
    let looked_up = tokio::task::spawn_blocking(move || {
        nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid))
    });
    match looked_up.await {
        Ok(Ok(Some(user))) => Ok(user.name),
        Ok(Ok(None)) => Err(Fault::precondition(format!("there is no Unix user with the id {uid}"))
            .remedy("create the account's Unix user before its databases are loaded")),
        Ok(Err(errno)) => Err(Fault::io("the Unix users cannot be read", &errno.into())),
        Err(error) => Err(Fault::bug("a lookup was cut off").caused_by(&error)),
    }
}

/// Makes a temporary user; returns its name. It has no password: the server asks the socket which
/// Unix user is calling.
pub(super) async fn make(
    session: &mut Session,
    spec: &Spec,
    purpose: Purpose,
) -> Result<String, Fault> {
    let name = purpose.user(spec);
    let uid = match purpose {
        Purpose::Load => spec.uid,
        Purpose::Rehearse | Purpose::Define => nix::unistd::geteuid().as_raw(),
    };
    let quoted = user(&name, "localhost");
    let sql = format!(
        "CREATE OR REPLACE USER {quoted} IDENTIFIED VIA unix_socket USING {}",
        text(&unix_name(uid).await?)
    );
    session.run(WHAT, &sql).await?;
    grant_all(session, spec, &name).await?;
    if purpose != Purpose::Define {
        return Ok(name);
    }
    session.run(WHAT, &format!("GRANT SET USER ON *.* TO {quoted}")).await?;
    let logging = "SELECT @@GLOBAL.log_bin AND NOT @@GLOBAL.log_bin_trust_function_creators";
    if session.value(WHAT, logging).await? == "1" {
        // Else the server takes no routine from it while the binary log is on.
        session.run(WHAT, &format!("GRANT BINLOG ADMIN ON *.* TO {quoted}")).await?;
    }
    Ok(name)
}

async fn grant_all(session: &mut Session, spec: &Spec, name: &str) -> Result<(), Fault> {
    for database in &spec.databases {
        let sql = format!(
            "GRANT ALL PRIVILEGES ON {}.* TO {}",
            grant_database(database.as_str()),
            user(name, "localhost")
        );
        session.run(WHAT, &sql).await?;
    }
    Ok(())
}

/// Drops the account's temporary users and ends their connections.
pub(super) async fn drop_all(session: &mut Session, spec: &Spec) -> Result<(), Fault> {
    let what = "a temporary database user cannot be dropped";
    let names = Purpose::ALL.map(|p| p.user(spec));
    for name in &names {
        session.run(what, &format!("DROP USER IF EXISTS {}", user(name, "localhost"))).await?;
    }
    let list = text_list(names.iter().map(String::as_str));
    let sql = format!("SELECT ID FROM information_schema.PROCESSLIST WHERE USER IN {list}");
    let ids: BTreeSet<u64> = session.rows(what, &sql).await?.iter().map(|r| r.number(0)).collect();
    super::fence::end_connections(session, &ids).await
}
