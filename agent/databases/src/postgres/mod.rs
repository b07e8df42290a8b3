//! PostgreSQL.
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
    /// The superuser, and the Unix user who is let in as that one.
    pub admin: String,
    /// The Unix user.
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

/// r
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostgresqlRecord {}
/// f
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostgresqlFence {}

pub(crate) struct Postgresql {
    config: PostgresqlConfig,
}
impl Postgresql {
    pub(crate) fn new(config: PostgresqlConfig) -> Self {
        Self { config }
    }
}
fn later<T>() -> Result<T, Fault> { Err(Fault::bug("not built yet")) }
#[async_trait]
impl Engine for Postgresql {
    fn kind(&self) -> EngineKind { EngineKind::Postgresql }
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
