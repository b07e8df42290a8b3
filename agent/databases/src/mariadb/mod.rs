//! MariaDB.
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use ferry_proto::Fault;
use ferry_proto::account::EngineKind;
use ferry_proto::ids::DatabaseName;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::engine::{Engine, Progress};
use crate::manifest::DatabaseManifest;
use crate::model::*;
use crate::record::{FenceRecord, Record};

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

/// r
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MariadbRecord {}
/// f
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MariadbFence {}

pub(crate) struct Mariadb {
    config: MariadbConfig,
}
impl Mariadb {
    pub(crate) fn new(config: MariadbConfig) -> Self {
        Self { config }
    }
}
fn later<T>() -> Result<T, Fault> { Err(Fault::bug("not built yet")) }
#[async_trait]
impl Engine for Mariadb {
    fn kind(&self) -> EngineKind { EngineKind::Mariadb }
    async fn available(&self) -> Availability { let _ = &self.config; Availability::Absent }
    async fn inspect(&self, _: &Spec) -> Result<Facts, Fault> { later() }
    async fn record(&self, _: &Spec, _: Option<&FenceRecord>) -> Result<Record, Fault> { later() }
    async fn check_target(&self, _: &Spec, _: &Record, _: Existing) -> Result<Vec<Finding>, Fault> { later() }
    async fn provision(&self, _: &Spec, _: &Record, _: Existing) -> Result<Provisioned, Fault> { later() }
    async fn deprovision(&self, _: &Spec, _: &Provisioned) -> Result<(), Fault> { later() }
    async fn plan_fence(&self, _: &Spec) -> Result<FenceRecord, Fault> { later() }
    async fn fence(&self, _: &Spec, _: &FenceRecord, _: Duration) -> Result<(), Fault> { later() }
    async fn unfence(&self, _: &Spec, _: &FenceRecord) -> Result<(), Fault> { later() }
    async fn is_fenced(&self, _: &Spec) -> Result<bool, Fault> { later() }
    async fn dump(&self, _: &Spec, _: &DatabaseName, _: &mut (dyn AsyncWrite + Send + Unpin), _: Progress<'_>) -> Result<DumpReport, Fault> { later() }
    async fn load(&self, _: &Spec, _: &Record, _: &DatabaseName, _: &mut (dyn AsyncRead + Send + Unpin), _: Progress<'_>) -> Result<LoadReport, Fault> { later() }
    async fn manifest(&self, _: &Spec, _: &DatabaseName) -> Result<DatabaseManifest, Fault> { later() }
    async fn rehearse(&self, _: &Spec, _: &Record) -> Result<(), Fault> { later() }
    async fn open(&self, _: &Spec, _: &Record) -> Result<(), Fault> { later() }
}
