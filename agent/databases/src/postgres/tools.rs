//! The vendor's client programs of the server's own release.

use std::path::PathBuf;

use ferry_proto::Fault;

use super::PostgresqlConfig;
use super::session::OPTIONS;
use crate::child::{Program, RunAs, first_existing};

/// The program of this name for a server of this release.
pub(super) async fn find(
    config: &PostgresqlConfig,
    major: u32,
    name: &str,
) -> Result<PathBuf, Fault> {
    let candidates = match &config.bin_dir {
        Some(dir) => vec![dir.join(name)],
        None => vec![
            PathBuf::from(format!("/usr/lib/postgresql/{major}/bin/{name}")),
            PathBuf::from(format!("/usr/bin/{name}")),
        ],
    };
    first_existing(&candidates).await.ok_or_else(|| {
        Fault::precondition(format!("{name} of PostgreSQL {major} is not there"))
            .remedy(format!("install the package postgresql-client-{major}"))
    })
}

/// The superuser's Unix user.
pub(super) async fn admin(config: &PostgresqlConfig) -> Result<RunAs, Fault> {
    let name = config.admin_user.clone();
    let found = tokio::task::spawn_blocking(move || nix::unistd::User::from_name(&name)).await;
    match found {
        Ok(Ok(Some(user))) => Ok(RunAs { uid: user.uid.as_raw(), gid: user.gid.as_raw() }),
        Ok(Ok(None)) => {
            Err(Fault::precondition(format!("there is no Unix user {}", config.admin_user))
                .remedy("install PostgreSQL, or name its Unix user in the agent's configuration"))
        }
        Ok(Err(errno)) => Err(Fault::io("the Unix users cannot be read", &errno.into())),
        Err(error) => Err(Fault::bug("a lookup was cut off").caused_by(&error)),
    }
}

/// What every client is told, whatever a database's own settings say.
pub(super) fn prepared(program: Program, config: &PostgresqlConfig) -> Program {
    program
        .env("PGPORT", config.port.to_string())
        .env("PGCONNECT_TIMEOUT", "20")
        .env("PGAPPNAME", "ferry-agent")
        .env("PGSYSCONFDIR", "/nonexistent")
        .env("PGPASSFILE", "/nonexistent/pgpass")
        .env("PGOPTIONS", OPTIONS)
}
