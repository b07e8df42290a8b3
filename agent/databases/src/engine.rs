//! The trait that both database engines implement, and their constructors.
//!
//! Replication (follow) will be a second trait beside this one, offered by an engine that can;
//! nothing here depends on how the data reaches the target.

use std::time::Duration;

use async_trait::async_trait;
use ferry_failpoints::ENABLED;
use ferry_proto::Fault;
use ferry_proto::account::EngineKind;
use ferry_proto::artefact::Artefact;
use ferry_proto::ids::{AccountName, DatabaseName};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::manifest::DatabaseManifest;
use crate::mariadb::{Mariadb, MariadbConfig};
use crate::model::{
    Availability, DumpReport, Existing, Facts, Finding, LoadReport, Provisioned, Spec, Survey,
};
use crate::points::Points;
use crate::postgres::{Postgresql, PostgresqlConfig};
use crate::record::{FenceRecord, Record};

/// Told the number of bytes passed so far, often; must return at once.
pub type Progress<'a> = &'a (dyn Fn(u64) + Send + Sync);

/// One database engine of this server. Every operation may be repeated after a crash at any point
/// and converges. For one account and engine, the caller runs one of [`Engine::load`],
/// [`Engine::rehearse`], [`Engine::open`], [`Engine::deprovision`] and [`Engine::drop_closed`] at a time: each ends what an
/// interrupted one left behind.
#[async_trait]
pub trait Engine: Send + Sync {
    /// Which engine this is.
    fn kind(&self) -> EngineKind;

    /// Whether the server is installed and answers. An engine that an account does not use need
    /// not be installed.
    async fn available(&self) -> Availability;

    /// Every database and database user of the server, and who has rights on what: for proposing
    /// definitions. Changes nothing.
    async fn survey(&self) -> Result<Survey, Fault>;

    /// At the source: what the account has here, and what stands in the way of moving it.
    /// A database or user that the definition names and the server lacks is a precondition fault
    /// that names all of them.
    async fn inspect(&self, spec: &Spec) -> Result<Facts, Fault>;

    /// At the source: everything needed to recreate the account's users, grants and databases
    /// elsewhere, apart from the content. If the account is fenced now, `fence` must be the fence's
    /// record: what the fence changed is recorded in its former state.
    async fn record(&self, spec: &Spec, fence: Option<&FenceRecord>) -> Result<Record, Fault>;

    /// At the target: what stands in the way of receiving `record`. Changes nothing. `existing`
    /// as for [`Engine::provision`].
    async fn check_target(
        &self,
        spec: &Spec,
        record: &Record,
        existing: Existing,
    ) -> Result<Vec<Finding>, Fault>;

    /// At the target: creates the account's databases and users, closed: nobody can log in as
    /// them. What it creates bears a mark of this account until [`Engine::open`]. With
    /// [`Existing::Refuse`] a database or user that exists without the mark is a precondition fault
    /// and nothing is changed; with [`Existing::Replace`] it is kept, provided that its logins
    /// are refused already (fenced by an earlier move), and its content is replaced by
    /// [`Engine::load`]. Returns what bears the mark now.
    async fn provision(
        &self,
        spec: &Spec,
        record: &Record,
        existing: Existing,
    ) -> Result<Provisioned, Fault>;

    /// Undo of [`Engine::provision`]: drops those of `created` that still bear this account's
    /// mark, and every temporary user of this account. If the receipt was lost, pass
    /// [`Provisioned::all_of`]: the mark decides.
    async fn deprovision(&self, spec: &Spec, created: &Provisioned) -> Result<(), Fault>;

    /// For erasing a copy, at a server that no longer serves the account: drops exactly those of the
    /// account's databases and users that are in `created` (what [`Engine::provision`] returned here),
    /// though [`Engine::open`] took their marks away. They must be closed: if one of the account's
    /// users can log in or is connected, or an event is on, it is a fault of class Fenced and nothing
    /// is dropped. What is gone already is no fault, so it may be repeated; what `created` does not
    /// name stays.
    async fn drop_closed(&self, spec: &Spec, created: &Provisioned) -> Result<(), Fault>;

    /// The state that a fence would change, to be journalled before [`Engine::fence`] acts.
    async fn plan_fence(&self, spec: &Spec) -> Result<FenceRecord, Fault>;

    /// Refuses logins by persistent state of the database server itself, stops events, lets open
    /// transactions finish for `grace`, ends the account's connections, and returns only when the
    /// last of its transactions is gone.
    async fn fence(&self, spec: &Spec, record: &FenceRecord, grace: Duration) -> Result<(), Fault>;

    /// Restores exactly the state in `record`.
    async fn unfence(&self, spec: &Spec, record: &FenceRecord) -> Result<(), Fault>;

    /// Whether every login of the account is refused, its events are stopped and nobody is
    /// connected as one of its users.
    async fn is_fenced(&self, spec: &Spec) -> Result<bool, Fault>;

    /// About how many bytes [`Engine::dump`] will write for each of the account's databases, in the
    /// order of the definition, as the server counts its rows: good for saying how long it will take.
    async fn dump_sizes(&self, spec: &Spec) -> Result<Vec<u64>, Fault>;

    /// At the source: writes the content of `database` to `out` in Ferry's framing. The caller
    /// sends it unchanged; it ends with a mark, so that a truncated stream is never loaded as a
    /// whole one.
    async fn dump(
        &self,
        spec: &Spec,
        database: &DatabaseName,
        out: &mut (dyn AsyncWrite + Send + Unpin),
        progress: Progress<'_>,
    ) -> Result<DumpReport, Fault>;

    /// At the target: replaces the content of `database` by what `input` holds, with the
    /// account's rights only. May be repeated.
    async fn load(
        &self,
        spec: &Spec,
        record: &Record,
        database: &DatabaseName,
        input: &mut (dyn AsyncRead + Send + Unpin),
        progress: Progress<'_>,
    ) -> Result<LoadReport, Fault>;

    /// What `database` holds, in a form that does not depend on the server's version; compare both
    /// ends' with [`crate::compare`].
    async fn manifest(
        &self,
        spec: &Spec,
        database: &DatabaseName,
    ) -> Result<DatabaseManifest, Fault>;

    /// At the target, still closed: everything loaded is usable with the account's rights, and
    /// everything that [`Engine::open`] will need is there.
    async fn rehearse(&self, spec: &Spec, record: &Record) -> Result<(), Fault>;

    /// At the target: lets the account's users in with their own passwords, starts events that
    /// ran at the source, takes the marks away.
    async fn open(&self, spec: &Spec, record: &Record) -> Result<(), Fault>;

    /// Everything that Ferry has made in this server and neither taken away nor opened, of any account.
    /// What bears only a hash of its account is known to be one of `accounts`, or of none of them.
    /// Changes nothing.
    async fn observe(&self, accounts: &[AccountName]) -> Result<Vec<Artefact>, Fault>;

    /// What still keeps the account out of its databases here, though it is served: left by a fence
    /// that no record undoes any more. Changes nothing.
    async fn left_closed(&self, spec: &Spec) -> Result<Vec<Artefact>, Fault>;

    /// Removes what [`Engine::observe`] has found, if it is still as it was found: a database only
    /// while it is empty. May be repeated.
    async fn remove(&self, artefact: &Artefact) -> Result<(), Fault>;
}

/// The fault for something that is not what it was when it was observed.
pub(crate) fn not_ours(artefact: &Artefact) -> Fault {
    Fault::precondition(format!("{artefact} is not, or not any more, what Ferry makes: it stays"))
        .remedy("look again: ferry-agent doctor")
}

/// MariaDB on this server.
pub fn mariadb(config: MariadbConfig) -> Box<dyn Engine> {
    pointed(Mariadb::new(config))
}

/// PostgreSQL on this server.
pub fn postgresql(config: PostgresqlConfig) -> Box<dyn Engine> {
    pointed(Postgresql::new(config))
}

/// An engine as it is, or where there are failpoints as one that comes to them.
fn pointed(engine: impl Engine + 'static) -> Box<dyn Engine> {
    if ENABLED { Box::new(Points(engine)) } else { Box::new(engine) }
}
