//! The temporary users of an account: they load its dumps, define its stored objects, try them.
//! Their names are derived from the account, so that one left by a crash is found and dropped.

use aws_lc_rs::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY};
use ferry_proto::Fault;

use super::objects::hex;
use super::processes;
use super::session::{Session, grant_database, text, user};
use crate::model::Spec;
use crate::secret::random_password;

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
    pub(super) const ALL: [Self; 3] = [Self::Load, Self::Rehearse, Self::Define];

    /// The word for it in the user's name.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::Rehearse => "try",
            Self::Define => "define",
        }
    }

    pub(super) fn user(self, spec: &Spec) -> String {
        spec.temporary_user(self.word())
    }
}

/// A temporary user and its password, which lives as long as the work it is for.
pub(super) struct Temporary {
    pub(super) name: String,
    pub(super) password: String,
}

fn sha1(parts: &[&[u8]]) -> [u8; 20] {
    let mut context = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
    parts.iter().for_each(|part| context.update(part));
    let mut out = [0; 20];
    // The digest of SHA-1 has exactly this length.
    out.copy_from_slice(context.finish().as_ref());
    out
}

impl Temporary {
    /// What the server keeps of the password, by its `mysql_native_password`.
    fn hash(&self) -> String {
        format!("*{}", hex(&sha1(&[&sha1(&[self.password.as_bytes()])])))
    }

    /// The answer to the server's challenge.
    pub(super) fn answer(&self, challenge: &[u8]) -> [u8; 20] {
        let once = sha1(&[self.password.as_bytes()]);
        let mut answer = sha1(&[challenge, &sha1(&[&once])]);
        answer.iter_mut().zip(once).for_each(|(a, b)| *a ^= b);
        answer
    }
}

/// Makes a temporary user.
pub(super) async fn make(
    session: &mut Session,
    spec: &Spec,
    purpose: Purpose,
) -> Result<Temporary, Fault> {
    let made = Temporary { name: purpose.user(spec), password: random_password() };
    let name = &made.name;
    let quoted = user(name, "localhost");
    // The hash, so that no log of statements holds the password.
    let sql = format!(
        "CREATE OR REPLACE USER {quoted} IDENTIFIED VIA mysql_native_password USING {}",
        text(&made.hash())
    );
    session.run(WHAT, &sql).await?;
    grant_all(session, spec, name).await?;
    if purpose != Purpose::Define {
        return Ok(made);
    }
    session.run(WHAT, &format!("GRANT SET USER ON *.* TO {quoted}")).await?;
    let logging = "SELECT @@GLOBAL.log_bin AND NOT @@GLOBAL.log_bin_trust_function_creators";
    if session.value(WHAT, logging).await? == "1" {
        // Else the server takes no routine from it while the binary log is on.
        session.run(WHAT, &format!("GRANT BINLOG ADMIN ON *.* TO {quoted}")).await?;
    }
    Ok(made)
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
    drop_named(session, &Purpose::ALL.map(|p| p.user(spec))).await
}

/// The same for those of these names.
pub(super) async fn drop_named(session: &mut Session, names: &[String]) -> Result<(), Fault> {
    let what = "a temporary database user cannot be dropped";
    for name in names {
        session.run(what, &format!("DROP USER IF EXISTS {}", user(name, "localhost"))).await?;
    }
    let all = processes::all(session).await?;
    let theirs = all.iter().filter(|c| names.contains(&c.user));
    processes::end(session, &theirs.map(|c| c.id).collect()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_servers() {
        let user = Temporary { name: String::new(), password: "password".to_owned() };
        assert_eq!(user.hash(), "*2470C0C06DEE42FD1618BB99005ADCA2EC9D1E19");
    }
}
