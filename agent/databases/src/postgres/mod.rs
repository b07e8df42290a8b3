//! PostgreSQL: the databases and roles of one account on the server of this machine.
//!
//! Control goes over the socket as the server's superuser ([`session`]); text of a dump never
//! does. It must not know what a move is.

mod catalogue;
mod dump;
mod fence;
mod filter;
mod inspect;
mod load;
mod manifest;
mod observe;
mod provision;
mod record;
mod recording;
mod rehearse;
mod session;
mod survey;
mod target;
mod temporary;
mod tools;

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use ferry_proto::Fault;
use ferry_proto::account::EngineKind;
use ferry_proto::artefact::Artefact;
use ferry_proto::ids::{AccountName, DatabaseName};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};

pub use fence::PostgresqlFence;
pub use record::PostgresqlRecord;

use crate::engine::{Engine, Progress};
use crate::manifest::DatabaseManifest;
use crate::model::{
    Availability, DumpReport, Existing, Facts, Finding, LoadReport, Provisioned, Spec, Survey,
};
use crate::record::{FenceRecord, Record};
use session::Session;

/// How to reach the PostgreSQL server of this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PostgresqlConfig {
    /// The directory of the server's socket.
    pub socket_dir: PathBuf,
    /// The server's port, which names the socket too.
    pub port: u16,
    /// The address on which the server takes connections with a password: dumps are loaded by
    /// a temporary role that has one.
    pub host: String,
    /// The superuser.
    pub admin: String,
    /// The Unix user who is let in as the superuser.
    pub admin_user: String,
    /// The database to connect to for work on others.
    pub maintenance_database: String,
    /// Where the client programs are, if not below `/usr/lib/postgresql` or in `/usr/bin`.
    pub bin_dir: Option<PathBuf>,
}

impl Default for PostgresqlConfig {
    fn default() -> Self {
        Self {
            socket_dir: "/var/run/postgresql".into(),
            port: 5432,
            host: "127.0.0.1".to_owned(),
            admin: "postgres".to_owned(),
            admin_user: "postgres".to_owned(),
            maintenance_database: "postgres".to_owned(),
            bin_dir: None,
        }
    }
}

/// The PostgreSQL server of this machine.
pub(crate) struct Postgresql {
    config: PostgresqlConfig,
}

impl Postgresql {
    pub(crate) fn new(config: PostgresqlConfig) -> Self {
        Self { config }
    }

    async fn session(&self) -> Result<Session, Fault> {
        Session::open(&self.config, &self.config.maintenance_database).await
    }

    async fn installed(&self) -> bool {
        let socket = self.config.socket_dir.join(format!(".s.PGSQL.{}", self.config.port));
        let looked = tokio::task::spawn_blocking(move || {
            let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
            socket.exists() || versions.into_iter().any(|v| v.path().join("bin/postgres").exists())
        });
        looked.await.unwrap_or(false)
    }
}

#[async_trait]
impl Engine for Postgresql {
    fn kind(&self) -> EngineKind {
        EngineKind::Postgresql
    }

    async fn available(&self) -> Availability {
        if !self.installed().await {
            return Availability::Absent;
        }
        let asked = async { inspect::server(&self.session().await?).await };
        asked.await.map_or_else(Availability::Down, Availability::Running)
    }

    async fn survey(&self) -> Result<Survey, Fault> {
        survey::survey(&self.session().await?).await
    }

    async fn inspect(&self, spec: &Spec) -> Result<Facts, Fault> {
        inspect::inspect(&self.config, spec).await
    }

    async fn record(&self, spec: &Spec, fence: Option<&FenceRecord>) -> Result<Record, Fault> {
        let fence = fence.map(FenceRecord::postgresql).transpose()?;
        Ok(Record::Postgresql(recording::record(&self.config, spec, fence).await?))
    }

    async fn check_target(
        &self,
        spec: &Spec,
        record: &Record,
        existing: Existing,
    ) -> Result<Vec<Finding>, Fault> {
        target::check(&self.config, spec, record.postgresql()?, existing).await
    }

    async fn provision(
        &self,
        spec: &Spec,
        record: &Record,
        existing: Existing,
    ) -> Result<Provisioned, Fault> {
        provision::provision(&self.config, spec, record.postgresql()?, existing).await
    }

    async fn deprovision(&self, spec: &Spec, created: &Provisioned) -> Result<(), Fault> {
        provision::deprovision(&self.config, spec, created).await
    }

    async fn drop_closed(&self, spec: &Spec, created: &Provisioned) -> Result<(), Fault> {
        provision::drop_closed(&self.config, spec, created).await
    }

    async fn plan_fence(&self, spec: &Spec) -> Result<FenceRecord, Fault> {
        Ok(FenceRecord::Postgresql(fence::plan(&self.session().await?, spec).await?))
    }

    async fn fence(&self, spec: &Spec, record: &FenceRecord, grace: Duration) -> Result<(), Fault> {
        // What is to be undone must have been written down by the same engine.
        record.postgresql()?;
        fence::fence(&self.session().await?, spec, grace).await
    }

    async fn unfence(&self, spec: &Spec, record: &FenceRecord) -> Result<(), Fault> {
        fence::unfence(&self.session().await?, spec, record.postgresql()?).await
    }

    async fn is_fenced(&self, spec: &Spec) -> Result<bool, Fault> {
        fence::is_fenced(&self.session().await?, spec).await
    }

    async fn dump_sizes(&self, spec: &Spec) -> Result<Vec<u64>, Fault> {
        inspect::data_sizes(&self.config, spec).await
    }

    async fn dump(
        &self,
        spec: &Spec,
        database: &DatabaseName,
        out: &mut (dyn AsyncWrite + Send + Unpin),
        progress: Progress<'_>,
    ) -> Result<DumpReport, Fault> {
        dump::dump(&self.config, spec, database.as_str(), out, progress).await
    }

    async fn load(
        &self,
        spec: &Spec,
        record: &Record,
        database: &DatabaseName,
        input: &mut (dyn AsyncRead + Send + Unpin),
        progress: Progress<'_>,
    ) -> Result<LoadReport, Fault> {
        let record = record.postgresql()?;
        load::load(&self.config, spec, record, database.as_str(), input, progress).await
    }

    async fn manifest(
        &self,
        spec: &Spec,
        database: &DatabaseName,
    ) -> Result<DatabaseManifest, Fault> {
        manifest::manifest(&self.config, spec, database.as_str()).await
    }

    async fn rehearse(&self, spec: &Spec, record: &Record) -> Result<(), Fault> {
        rehearse::rehearse(&self.config, spec, record.postgresql()?).await
    }

    async fn open(&self, spec: &Spec, record: &Record) -> Result<(), Fault> {
        provision::open(&self.config, spec, record.postgresql()?).await
    }

    async fn observe(&self, accounts: &[AccountName]) -> Result<Vec<Artefact>, Fault> {
        observe::observe(&self.config, accounts).await
    }

    async fn left_closed(&self, spec: &Spec) -> Result<Vec<Artefact>, Fault> {
        observe::left_closed(&self.session().await?, spec).await
    }

    async fn remove(&self, artefact: &Artefact) -> Result<(), Fault> {
        observe::remove(&self.config, artefact).await
    }
}

/// For the fuzz target `postgresql_filter`.
pub(crate) fn fuzz_filter(major: u32, dump: &[u8], step: usize) -> Result<Vec<u8>, Fault> {
    let mut filter = filter::Filter::new(major, "UTF8");
    let mut out = Vec::new();
    for piece in dump.chunks(step) {
        out.extend(filter.feed(piece)?);
    }
    out.extend(filter.finish()?);
    Ok(out)
}
