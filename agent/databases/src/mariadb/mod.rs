//! MariaDB: the databases and users of one account on the server of this machine.
//!
//! Control goes over the socket as the server's administrator ([`session`]); text of a dump never
//! does. It must not know what a move is.

mod ddl;
mod dump;
mod events;
mod fence;
mod files;
mod grants;
mod inspect;
mod load;
mod manifest;
mod objects;
mod observe;
mod processes;
mod provision;
mod record;
mod rehearse;
mod rows;
mod session;
mod single;
mod strangers;
mod survey;
mod target;
mod temporary;
mod users;

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use ferry_proto::Fault;
use ferry_proto::account::EngineKind;
use ferry_proto::artefact::Artefact;
use ferry_proto::ids::{AccountName, DatabaseName};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};

pub use fence::MariadbFence;
pub use record::MariadbRecord;

use crate::child::first_existing;
use crate::engine::{Engine, Progress};
use crate::manifest::DatabaseManifest;
use crate::model::{
    Availability, DumpReport, Existing, Facts, Finding, LoadReport, Provisioned, Spec, Survey,
};
use crate::record::{FenceRecord, Record};
use session::Session;

/// How to reach the MariaDB server of this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MariadbConfig {
    /// The server's socket.
    pub socket: PathBuf,
    /// The administrator, who is let in on the socket because the agent runs as root.
    pub admin: String,
    /// Where the client programs are.
    pub bin_dir: PathBuf,
}

impl Default for MariadbConfig {
    fn default() -> Self {
        Self {
            socket: "/run/mysqld/mysqld.sock".into(),
            admin: "root".to_owned(),
            bin_dir: "/usr/bin".into(),
        }
    }
}

/// The MariaDB server of this machine.
pub(crate) struct Mariadb {
    config: MariadbConfig,
}

impl Mariadb {
    pub(crate) fn new(config: MariadbConfig) -> Self {
        Self { config }
    }

    async fn session(&self) -> Result<Session, Fault> {
        Session::open(&self.config).await
    }

    async fn installed(&self) -> bool {
        let server = ["/usr/sbin/mariadbd", "/usr/sbin/mysqld"].map(PathBuf::from);
        let places = [self.config.socket.clone()].into_iter().chain(server);
        first_existing(&places.collect::<Vec<_>>()).await.is_some()
    }
}

#[async_trait]
impl Engine for Mariadb {
    fn kind(&self) -> EngineKind {
        EngineKind::Mariadb
    }

    async fn available(&self) -> Availability {
        if !self.installed().await {
            return Availability::Absent;
        }
        let asked = async { inspect::server(&mut self.session().await?).await };
        asked.await.map_or_else(Availability::Down, Availability::Running)
    }

    async fn survey(&self) -> Result<Survey, Fault> {
        survey::survey(&mut self.session().await?).await
    }

    async fn inspect(&self, spec: &Spec) -> Result<Facts, Fault> {
        inspect::inspect(&mut self.session().await?, spec).await
    }

    async fn record(&self, spec: &Spec, fence: Option<&FenceRecord>) -> Result<Record, Fault> {
        let fence = fence.map(FenceRecord::mariadb).transpose()?;
        let record = inspect::record(&mut self.session().await?, spec, fence).await?;
        Ok(Record::Mariadb(record))
    }

    async fn check_target(
        &self,
        spec: &Spec,
        record: &Record,
        existing: Existing,
    ) -> Result<Vec<Finding>, Fault> {
        let session = &mut self.session().await?;
        target::check(&self.config, session, spec, record.mariadb()?, existing).await
    }

    async fn provision(
        &self,
        spec: &Spec,
        record: &Record,
        existing: Existing,
    ) -> Result<Provisioned, Fault> {
        provision::provision(&mut self.session().await?, spec, record.mariadb()?, existing).await
    }

    async fn deprovision(&self, spec: &Spec, created: &Provisioned) -> Result<(), Fault> {
        provision::deprovision(&mut self.session().await?, spec, created).await
    }

    async fn drop_closed(&self, spec: &Spec, created: &Provisioned) -> Result<(), Fault> {
        provision::drop_closed(&mut self.session().await?, spec, created).await
    }

    async fn plan_fence(&self, spec: &Spec) -> Result<FenceRecord, Fault> {
        Ok(FenceRecord::Mariadb(fence::plan(&mut self.session().await?, spec).await?))
    }

    async fn fence(&self, spec: &Spec, record: &FenceRecord, grace: Duration) -> Result<(), Fault> {
        // What is to be undone must have been written down by the same engine.
        record.mariadb()?;
        fence::fence(&self.config, spec, grace).await
    }

    async fn unfence(&self, spec: &Spec, record: &FenceRecord) -> Result<(), Fault> {
        fence::unfence(&mut self.session().await?, spec, record.mariadb()?).await
    }

    async fn is_fenced(&self, spec: &Spec) -> Result<bool, Fault> {
        fence::is_fenced(&mut self.session().await?, spec).await
    }

    async fn dump_sizes(&self, spec: &Spec) -> Result<Vec<u64>, Fault> {
        inspect::data_sizes(&mut self.session().await?, spec).await
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
        let record = record.mariadb()?;
        load::load(&self.config, spec, record, database.as_str(), input, progress).await
    }

    async fn manifest(
        &self,
        spec: &Spec,
        database: &DatabaseName,
    ) -> Result<DatabaseManifest, Fault> {
        manifest::manifest(&mut self.session().await?, spec, database.as_str()).await
    }

    async fn rehearse(&self, spec: &Spec, record: &Record) -> Result<(), Fault> {
        rehearse::rehearse(&self.config, spec, record.mariadb()?).await
    }

    async fn open(&self, spec: &Spec, record: &Record) -> Result<(), Fault> {
        provision::open(&mut self.session().await?, spec, record.mariadb()?).await
    }

    async fn observe(&self, accounts: &[AccountName]) -> Result<Vec<Artefact>, Fault> {
        observe::observe(&mut self.session().await?, accounts).await
    }

    async fn left_closed(&self, spec: &Spec) -> Result<Vec<Artefact>, Fault> {
        observe::left_closed(&mut self.session().await?, spec).await
    }

    async fn remove(&self, artefact: &Artefact) -> Result<(), Fault> {
        observe::remove(&mut self.session().await?, artefact).await
    }
}

/// For the fuzz target `mariadb_object`.
pub(crate) fn fuzz_object(bytes: &[u8], spec: &Spec) {
    let Ok(object) = serde_json::from_slice::<objects::StoredObject>(bytes) else { return };
    if object.check(spec, "shop").is_err() {
        return;
    }
    let Ok(statement) = object.statement() else { return };
    let definer = b"DEFINER = `shop`@`localhost` ";
    assert!(statement.starts_with(b"CREATE "), "{statement:?}");
    assert!(statement.windows(definer.len()).any(|w| w == definer), "{statement:?}");
    let setting = object.setting();
    assert!(setting.starts_with("SET sql_mode = "), "{setting}");
}

/// For the fuzz target `mariadb_ddl`.
pub(crate) fn fuzz_ddl(server: u32, dump: &[u8], step: usize) -> Vec<u8> {
    let mut filter = ddl::DdlFilter::new(server);
    let mut out = Vec::new();
    dump.chunks(step).for_each(|piece| out.extend(filter.feed(piece)));
    out.extend(filter.finish());
    out
}
